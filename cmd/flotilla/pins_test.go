package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/node"
)

// TestPinCommands adds pins to a node, looks at them and takes them back.
func TestPinCommands(t *testing.T) {
	bin, data := build(t), t.TempDir()
	p := serve(t, bin, "--data", data, "--zone", "home")
	for _, row := range []struct {
		args         string
		code         int
		says, errors string // parts of the output
	}{
		{"list", 0, "ZONE  REPOSITORIES  TAGS\n", ""},
		{"status", 0, "TO GO", ""},
		{"add --zone home --repo base/** --tag v*", 0, "", ""},
		{"add --zone home --repo base/** --tag v*", 0, "", ""},
		{"status", 0, "home  base/**       v*    yes    0       0      0 B", ""},
		{"add --zone ship --repo app", 0, "", "warning: no member is of zone ship"},
		{"list", 0, "home  base/**       v*\nship  app           -\n", ""},
		{"list --json", 0, `{"zone":"ship","repo":"app"}`, ""},
		{"status", exitFailed, "ship app: no member is of zone ship", "1 of 2 pins do not hold"},
		{"status --json", exitFailed, `"holds":false,"why":"no member`, "1 of 2 pins do not hold"},
		{"remove --zone ship --repo app --tag v1", exitFailed, "", "there is no pin ship app:v1"},
		{"remove --zone ship --repo app", 0, "", ""},
		{"add --zone ship --repo App", exitFailed, "", "lower-case"},
		{"add --zone ship", exitUsage, "", "--repo"},
		{"remove --repo app", exitUsage, "", "--zone"},
		{"add ship app", exitUsage, "", "takes no argument"},
		{"sail", exitUsage, "", "takes no argument"},
		{"", 0, "Available Commands:", ""},
	} {
		args := append([]string{"pin"}, strings.Fields(row.args)...)
		if len(args) > 1 && args[1] != "sail" {
			args = append(args, "--server", p.addr, "--secret-file", filepath.Join(data, "mesh.secret"))
		}
		cmd := exec.Command(bin, args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if exitCode(err) != row.code || !strings.Contains(string(out), row.says) || !strings.Contains(stderr.String(), row.errors) {
			t.Errorf("flotilla pin %s: exit code %d, says\n%sand\n%s", row.args, exitCode(err), out, stderr.String())
		}
	}
}

// TestPrintPinsStatus: people see at a glance what is missing, and how long it takes.
func TestPrintPinsStatus(t *testing.T) {
	pin := node.Pin{Zone: "ship", Repo: "base/**"}
	s := node.PinsStatus{
		Pins: []node.PinStatus{
			{Pin: pin, Holds: true, Images: 3, Blobs: 9, Bytes: 50 << 20},
			{Pin: pin, Why: "blobs are missing", Images: 3, Blobs: 9, Bytes: 50 << 20, MissingBlobs: 2, MissingBytes: 4 << 20, TimeToGo: 90 * time.Second},
			{Pin: pin, Why: "blobs are missing", Blobs: 1, Bytes: 7, MissingBlobs: 1, MissingBytes: 7, TimeToGo: time.Millisecond},
			{Pin: pin, Why: "blobs are missing", Blobs: 1, Bytes: 7, MissingBlobs: 1, MissingBytes: 7},
		},
		Silent: []string{"n7"}, Degraded: true,
	}
	var out bytes.Buffer
	if err := printPinsStatus(&out, s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"yes    3       9      50.0 MiB  -                 -\n",
		"no     3       9      50.0 MiB  2 blobs, 4.0 MiB  1m30s\n",
		"no     0       1      7 B       1 blobs, 7 B      1s\n",
		"1 blobs, 7 B      not known\n",
		"ship base/**: blobs are missing\n",
		"n7 gave no answer",
		"lost touch",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if err := allHold(s); err == nil || !strings.Contains(err.Error(), "3 of 4") {
		t.Error(err)
	}
	b, err := json.Marshal(s)
	if err != nil || !strings.Contains(string(b), `{"zone":"ship","repo":"base/**","holds":true,"images":3`) {
		t.Errorf("%s, %v", b, err)
	}
}
