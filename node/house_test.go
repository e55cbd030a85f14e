package node_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/flotilla-registry/flotilla"

// mayImport is the whole table of who may import whom in this module, and
// homes says in which package alone a library may be used.
var (
	mayImport = map[string][]string{
		"cmd/flotilla":       {"node", "api/auth", "api/oci", "cmd/flotilla/bench"},
		"cmd/flotilla/bench": {},
		"cmd/balancer":       {},
		"cmd/puller":         {},
		"cmd/faults":         {"node", "cmd/faults/rig", "cmd/faults/check"},
		"cmd/faults/rig":     {},
		"cmd/faults/check":   {},
		"node":               {"api", "api/auth", "mesh", "metadata", "node/disk", "api/oci"},
		"api":                {"metadata", "api/auth", "api/oci"},
		"api/auth":           {"api/oci"},
		"mesh":               {"mesh/ring", "api/oci"},
		"metadata":           {"api/oci", "metadata/wire"},
		"node/disk":          {"api/oci"},
		"mesh/ring":          {},
		"metadata/wire":      {},
		"api/oci":            {},
	}
	homes = map[string][]string{
		"github.com/hashicorp/memberlist":     {"mesh"},
		"github.com/hashicorp/raft":           {"metadata"},
		"github.com/hashicorp/raft-wal":       {"metadata"},
		"github.com/cockroachdb/pebble":       {"metadata"},
		"google.golang.org/protobuf":          {"metadata", "metadata/wire"},
		"github.com/gorilla/mux":              {"api"},
		"github.com/golang-jwt/jwt":           {"api/auth"},
		"go.yaml.in/yaml":                     {"api/auth"},
		"golang.org/x/crypto":                 {"api/auth"},
		"github.com/prometheus/client_golang": {"node"},
		"github.com/spf13/cobra":              {"cmd/flotilla"},
		"github.com/anishathalye/porcupine":   {"cmd/faults/check"},
	}
)

type listed struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

// packages lists this module's packages as the go command sees them.
func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestImportsPointOneWay(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		allowed, ok := mayImport[name]
		if !ok {
			t.Errorf("package %s has no row in the import table", name)
			continue
		}
		seen[name] = true
		for _, imp := range p.Imports {
			if local, ok := strings.CutPrefix(imp, module+"/"); ok && !slices.Contains(allowed, local) {
				t.Errorf("%s imports %s: the table forbids it", name, local)
			}
			for lib, home := range homes {
				if (imp == lib || strings.HasPrefix(imp, lib+"/")) && !slices.Contains(home, name) {
					t.Errorf("%s imports %s, whose home is %s", name, imp, strings.Join(home, ", "))
				}
			}
		}
	}
	for name := range mayImport {
		if !seen[name] {
			t.Errorf("the import table has a row for %s, which is no package", name)
		}
	}
}

// TestPinnedCore holds the versions that are known to build together and to
// have the fixes that data safety rests on.
func TestPinnedCore(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pin := range []string{
		"github.com/hashicorp/raft v1.8.0",
		"github.com/hashicorp/memberlist v0.7.0",
		"github.com/hashicorp/raft-wal v0.4.1",
		"github.com/cockroachdb/pebble/v2 v2.1.7",
		"github.com/opencontainers/go-digest v1.0.0",
		"github.com/gorilla/mux v1.8.1",
	} {
		if !regexp.MustCompile(`(?m)^\s*` + regexp.QuoteMeta(pin) + `\b`).Match(b) {
			t.Errorf("go.mod does not pin %s", pin)
		}
	}
}

var initFunc = regexp.MustCompile(`(?m)^func init\(\)`)

// TestHouse checks what a reader relies on everywhere: a page that introduces
// each package, no code that runs before main, and no file that takes more
// than a sitting.
func TestHouse(t *testing.T) {
	const longest = 600
	for _, p := range packages(t) {
		introduced := len(p.GoFiles) == 1
		for _, name := range p.GoFiles {
			introduced = introduced || name == "doc.go" || name == "main.go"
			if strings.HasSuffix(name, ".pb.go") {
				introduced = true
				continue
			}
			b, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			where := path.Join(strings.TrimPrefix(p.ImportPath, module+"/"), name)
			if initFunc.Match(b) {
				t.Errorf("%s has an init function", where)
			}
			if n := bytes.Count(b, []byte("\n")); n > longest {
				t.Errorf("%s has %d lines, more than %d", where, n, longest)
			}
		}
		if !introduced {
			t.Errorf("package %s has no doc.go", p.ImportPath)
		}
	}
}
