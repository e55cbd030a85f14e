package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func testTime() time.Time { return time.Unix(1_700_000_000, 0) }

// tiny measures everything with next to nothing.
func tiny(targets ...string) Options {
	return Options{Targets: targets, Settings: Settings{
		Rounds: 2, Duration: time.Minute, Requests: 20, Workers: 3, Size: 100_000, Chunk: 30_000, Parts: 4,
		PartSize: 40_000, Range: 1000, Tags: 25, Page: 10, Layers: 3, LayerSize: 5000, Transfers: 2, Limit: time.Minute,
	}}
}

// measureJSON runs o and returns the report.
func measureJSON(t *testing.T, ctx context.Context, o Options) (Report, error) {
	t.Helper()
	o.JSON = true
	var out bytes.Buffer
	err := Run(ctx, o, &out)
	var report Report
	if jsonErr := json.Unmarshal(out.Bytes(), &report); jsonErr != nil {
		t.Fatalf("report: %v; run: %v", jsonErr, err)
	}
	return report, err
}

func TestAllWorkloads(t *testing.T) {
	for _, manyTagsAtOnce := range []bool{false, true} {
		a, b := newRegistry(t), newRegistry(t)
		b.manyTagsAtOnce = manyTagsAtOnce
		report, err := measureJSON(t, t.Context(), tiny("a="+a.URL, b.URL))
		if err != nil {
			t.Fatal(err)
		}
		wantOps := map[string]int{
			"push-monolithic": 1, "push-chunked": 1, "push-parallel": 4, "pull": 1, "pull-raw": 1, "pull-parallel": 4,
			"image-push": 1, "image-pull": 1,
		}
		wantBytes := map[string]int64{
			"push-monolithic": 100_000, "push-chunked": 100_000, "push-parallel": 160_000, "pull": 100_000,
			"pull-raw": 100_000, "pull-parallel": 160_000, "range-get": 20_000, "image-push": 15_512,
		}
		if len(report.Results) != 2*len(Workloads()) {
			t.Fatalf("%d results", len(report.Results))
		}
		for i, r := range report.Results {
			if w := Workloads()[i/2]; r.Workload != w.Name || r.Unit != w.Unit || r.Target != report.Targets[i%2].Name {
				t.Errorf("result %d is %s in %s on %s", i, r.Workload, r.Unit, r.Target)
			}
			if r.Failed != "" || len(r.Samples) != 2 || r.Median <= 0 || r.Ratio <= 0 || i%2 == 0 && r.Ratio != 1 {
				t.Errorf("%s on %s: %+v", r.Workload, r.Target, r)
			}
			for _, s := range r.Samples {
				ops := 20
				if n, ok := wantOps[r.Workload]; ok {
					ops = n
				}
				if n, ok := wantBytes[r.Workload]; s.Operations != ops || ok && s.Bytes != n {
					t.Errorf("%s: %d operations, want %d; %d bytes, want %d", r.Workload, s.Operations, ops, s.Bytes, n)
				}
			}
		}
		for _, r := range []*registry{a, b} {
			if left := r.left(); left != nothingLeft {
				t.Errorf("left behind: %s", left)
			}
		}
		if a.requests["PUT manifests"] <= b.requests["PUT manifests"] == manyTagsAtOnce {
			t.Errorf("PUTs of manifests: %d, with several tags at once %d", a.requests["PUT manifests"], b.requests["PUT manifests"])
		}
		pushed := append(a.pushed, b.pushed...)
		slices.Sort(pushed)
		if n := len(pushed); n == 0 || len(slices.Compact(pushed)) != n {
			t.Errorf("content came twice: %d blobs", n)
		}
	}
}

func TestRoundsRotate(t *testing.T) {
	var mu sync.Mutex
	var order strings.Builder
	note := func(name string) func(*http.Request) {
		return func(q *http.Request) {
			if q.Method == http.MethodPost {
				mu.Lock()
				defer mu.Unlock()
				order.WriteString(name)
			}
		}
	}
	o := tiny()
	for _, name := range []string{"a", "b", "c"} {
		r := newRegistry(t)
		r.saw = note(name)
		o.Targets = append(o.Targets, r.URL)
	}
	o.Rounds, o.Workloads = 3, []string{"push-monolithic"}
	if _, err := measureJSON(t, t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if got, want := order.String(), "abc"+"bca"+"cab"+"abc"; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
}

func TestFailures(t *testing.T) {
	path := func(method, part string, status int) func(*http.Request) int {
		return func(q *http.Request) int {
			if q.Method == method && strings.Contains(q.URL.Path, part) {
				return status
			}
			return 0
		}
	}
	var puts atomic.Int64
	for _, test := range []struct {
		name, workload string
		answer         func(*http.Request) int
		reason         string
	}{
		{"error", "push-monolithic", path("PUT", "/uploads/", 500), "500 Internal Server Error: as the test wants"},
		{"other success", "push-monolithic", path("PUT", "/uploads/", 200), "200 OK"},
		{"chunk refused", "push-chunked", path("PATCH", "/uploads/", 416), "416"},
		{"no ranges", "range-get", path("GET", "/blobs/", 200), "200 OK"},
		{"unknown tag", "manifest-head", path("HEAD", "/manifests/", 404), "404 Not Found"},
		{"other bytes", "manifest-get", path("GET", "/manifests/", 200), "bytes instead of"},
		{"setting up", "blob-head", path("POST", "/uploads/", 403), "403 Forbidden"},
		{"too many", "manifest-put", func(q *http.Request) int {
			if q.Method == "PUT" && strings.Contains(q.URL.Path, "/manifests/") && puts.Add(1) == 30 {
				return 429
			}
			return 0
		}, "429 Too Many Requests"},
	} {
		t.Run(test.name, func(t *testing.T) {
			good, bad := newRegistry(t), newRegistry(t)
			bad.answer = test.answer
			o := tiny(good.URL, bad.URL)
			o.Workloads = []string{test.workload}
			report, err := measureJSON(t, t.Context(), o)
			if err == nil || err.Error() != "1 of 2 measurements failed" {
				t.Errorf("error %v", err)
			}
			if r := report.Results[0]; r.Failed != "" || len(r.Samples) != 2 {
				t.Errorf("the good one: %+v", r)
			}
			if r := report.Results[1]; !strings.Contains(r.Failed, test.reason) || r.Median != 0 || r.Ratio != 0 {
				t.Errorf("the bad one: %+v", r)
			}
			if left := bad.left(); left != nothingLeft {
				t.Errorf("left behind: %s", left)
			}
			var out bytes.Buffer
			if err := report.write(&out, false); err != nil || !strings.Contains(out.String(), "failed: "+report.Results[1].Failed+"\n") {
				t.Errorf("table: %v\n%s", err, &out)
			}
		})
	}
}

// A cell that failed is not tried again: its setup alone may take minutes.
func TestFailedCellEnds(t *testing.T) {
	r := newRegistry(t)
	var posts atomic.Int64
	r.answer = func(q *http.Request) int {
		if q.Method == http.MethodPost {
			posts.Add(1)
			return 503
		}
		return 0
	}
	o := tiny(r.URL)
	o.Workloads = []string{"push-monolithic"}
	if _, err := measureJSON(t, t.Context(), o); err == nil || posts.Load() != 1 {
		t.Errorf("error %v after %d attempts", err, posts.Load())
	}
}

func TestInterrupt(t *testing.T) {
	for _, test := range []struct{ workload, method, part string }{
		{"push-chunked", "PATCH", "/uploads/"},
		{"push-parallel", "PUT", "/uploads/"},
		{"manifest-put", "PUT", "/manifests/"},
		{"tag-list", "PUT", "/manifests/"},
		{"pull", "GET", "/blobs/"},
	} {
		t.Run(test.workload, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r := newRegistry(t)
			var n atomic.Int64
			r.saw = func(q *http.Request) {
				if q.Method == test.method && strings.Contains(q.URL.Path, test.part) && n.Add(1) == 6 {
					cancel()
				}
			}
			o := tiny(r.URL)
			o.Rounds, o.Workloads = 9, []string{test.workload}
			report, err := measureJSON(t, ctx, o)
			if !errors.Is(err, context.Canceled) || len(report.Results) != 1 || report.Results[0].Failed == "" {
				t.Errorf("error %v, report %+v", err, report)
			}
			if left := r.left(); left != nothingLeft {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

func TestLimit(t *testing.T) {
	r := newRegistry(t)
	release := make(chan struct{})
	defer close(release)
	r.saw = func(q *http.Request) {
		if q.Method == http.MethodHead {
			<-release
		}
	}
	o := tiny(r.URL)
	o.Limit, o.Workloads = 300*time.Millisecond, []string{"blob-head"}
	report, err := measureJSON(t, t.Context(), o)
	if err == nil || !strings.Contains(report.Results[0].Failed, "not done within 300ms") {
		t.Errorf("error %v, report %+v", err, report.Results)
	}
	if left := r.left(); left != nothingLeft {
		t.Errorf("left behind: %s", left)
	}
}

func TestDeletesRefused(t *testing.T) {
	for _, test := range []struct {
		refused string
		remains Remains
		deletes map[string]int // requests of that kind
	}{
		{"blob", Remains{Blobs: 4}, map[string]int{"DELETE blobs": 1}},
		// The manifests take their tags with them.
		{"tag", Remains{}, map[string]int{"DELETE manifests": 1 + 40}},
		{"manifest", Remains{Manifests: 40}, map[string]int{"DELETE manifests": 40 + 1}},
		{"tag,manifest,blob", Remains{Tags: 40, Manifests: 40, Blobs: 4}, map[string]int{"DELETE manifests": 2, "DELETE blobs": 1}},
	} {
		t.Run(test.refused, func(t *testing.T) {
			r := newRegistry(t)
			for kind := range strings.SplitSeq(test.refused, ",") {
				r.noDelete[kind] = true
			}
			o := tiny(r.URL)
			// The round that warms up and one that counts, of 20 manifests and 2 blobs.
			o.Rounds, o.Workloads = 1, []string{"manifest-put"}
			report, err := measureJSON(t, t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			got := report.Targets[0].Remains
			if got == nil {
				got = &Remains{}
			}
			if got.Tags != test.remains.Tags || got.Manifests != test.remains.Manifests || got.Blobs != test.remains.Blobs || got.Uploads != 0 {
				t.Errorf("remains %+v, want %+v", got, test.remains)
			}
			if got.none() != (len(report.Notes) == 0) || !got.none() && !strings.Contains(report.Notes[0], "405 Method Not Allowed: deletes are off") {
				t.Errorf("notes %q", report.Notes)
			}
			for kind, n := range test.deletes {
				if r.requests[kind] != n {
					t.Errorf("%s: %d requests, want %d", kind, r.requests[kind], n)
				}
			}
		})
	}
}

func TestGreeting(t *testing.T) {
	closed := newRegistry(t)
	closed.Close()
	locked := newRegistry(t)
	locked.user = "me:secret"
	for _, test := range []struct{ name, target, want string }{
		{"nobody there", closed.URL, "connection refused"},
		{"no credentials", locked.URL, "401 Unauthorized"},
		{"wrong ones", strings.Replace(locked.URL, "//", "//me:other@", 1), "401 Unauthorized"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := Run(t.Context(), tiny(test.target), &bytes.Buffer{})
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "other") {
				t.Errorf("error %v", err)
			}
		})
	}
}
