package bench

import (
	"context"
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestStatistics(t *testing.T) {
	for _, test := range []struct {
		name           string
		values         []float64
		median, spread float64
	}{
		{"none", nil, 0, 0},
		{"one", []float64{7}, 7, 0},
		{"odd", []float64{30, 10, 20}, 20, 50},
		{"even", []float64{4, 1, 3, 2}, 2.5, 60},
		{"outlier", []float64{10, 10, 10, 10, 110}, 10, 500},
	} {
		if m, s := median(test.values), spread(test.values); m != test.median || math.Abs(s-test.spread) > 1e-9 {
			t.Errorf("%s: median %v, spread %v", test.name, m, s)
		}
	}
}

func TestPairedRatio(t *testing.T) {
	samples := func(values ...float64) (list []Sample) {
		for _, v := range values {
			list = append(list, Sample{Value: v})
		}
		return list
	}
	for _, test := range []struct {
		name           string
		unit           unit
		samples, first []Sample
		want           float64
	}{
		// The machine slows down tenfold twice: the ratio of medians would be 0.2 and the like.
		{"rates", rate, samples(2, 20, 200), samples(1, 10, 100), 2},
		{"times", latency, samples(2, 20, 200), samples(1, 10, 100), 0.5},
		{"median of them", throughput, samples(10, 30, 20), samples(10, 10, 10), 2},
		{"first failed", rate, samples(1, 2), nil, 0},
	} {
		if got := pairedRatio(test.unit, test.samples, test.first); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestPercentile(t *testing.T) {
	var d []time.Duration
	for i := range 200 {
		d = append(d, time.Duration(200-i)*time.Millisecond)
	}
	for p, want := range map[int]float64{1: 2, 50: 100, 99: 198, 100: 200} {
		if got := percentile(d, p); got != want {
			t.Errorf("p%d is %v, want %v", p, got, want)
		}
	}
	if got := percentile(d[:1], 99); got != 1 {
		t.Errorf("p99 of one is %v", got)
	}
}

func TestServerSummary(t *testing.T) {
	samples := []Sample{
		{CPUSeconds: 1, Bytes: 1 << 30, Operations: 4, PeakBytes: 5},
		{CPUSeconds: 2, Bytes: 1 << 30, Operations: 4, PeakBytes: 3},
	}
	for u, want := range map[unit]Server{
		throughput: {CPU: 1.5, CPUUnit: "s/GiB", PeakBytes: 5},
		latency:    {CPU: 1.5, CPUUnit: "s/GiB", PeakBytes: 5},
		rate:       {CPU: 375_000, CPUUnit: "µs/op", PeakBytes: 5},
	} {
		var got Server
		if got.summarize(u, samples); got != want {
			t.Errorf("%s: %+v, want %+v", u, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"1": 1, "65536": 64 * kib, "64k": 64 * kib, "64KiB": 64 * kib, "16MiB": 16 * mib, "2g": 2 * gib, "7B": 7,
		"": -1, "0": -1, "-5": -1, "MiB": -1, "1.5GiB": -1, "5x": -1, "1kk": -1, "9999999999GiB": -1, "5 MiB": -1,
	} {
		got := Size(-1)
		if err := got.Set(text); got != want || (err != nil) != (want < 0) {
			t.Errorf("%q is %d, want %d; error %v", text, got, want, err)
		}
		if again := Size(-1); want > 0 && (again.Set(got.String()) != nil || again != got) {
			t.Errorf("%d prints as %s", got, got)
		}
	}
}

func TestParseTarget(t *testing.T) {
	for _, test := range []struct{ text, name, space, bases string }{
		{"http://h:5000", "h:5000", "", "http://h:5000"},
		{"https://h/", "h", "", "https://h"},
		{"mine=https://u:p@h/team/app", "mine", "team/app/", "https://u:p@h"},
		{"http://a:1,http://b:2", "a:1", "", "http://a:1 http://b:2"},
		{"http://u:p=q@h", "h", "", "http://u:p=q@h"},
		{"h:5000", "", "", ""},
		{"ftp://h", "", "", ""},
		{"http://", "", "", ""},
		{"http://h?x=1", "", "", ""},
		{"http://a/x,http://b/y", "", "", ""},
		{"http://u:p%zz@h", "", "", ""},
		{"", "", "", ""},
	} {
		got, err := parseTarget(test.text)
		if test.name == "" {
			if err == nil || strings.Contains(err.Error(), "p%zz") {
				t.Errorf("%q: error %v", test.text, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", test.text, err)
			continue
		}
		var bases []string
		for _, b := range got.bases {
			bases = append(bases, b.String())
		}
		if got.name != test.name || got.space != test.space || strings.Join(bases, " ") != test.bases {
			t.Errorf("%q: name %s, space %q, bases %v", test.text, got.name, got.space, bases)
		}
	}
}

func TestCheck(t *testing.T) {
	one := []string{"http://h"}
	for _, test := range []struct {
		name    string
		options Options
		want    string // "": fine
	}{
		{"defaults", Options{Targets: one}, ""},
		{"quick", Options{Targets: one, Quick: true, PIDs: []string{""}}, ""},
		{"no target", Options{}, "at least one URL"},
		{"more processes", Options{Targets: one, PIDs: []string{"1", "2"}}, "2 process ids for 1"},
		{"no process", Options{Targets: one, PIDs: []string{"1,x"}}, `"x" is not a process id`},
		{"no workload", Options{Targets: one, Workloads: []string{"push"}}, "push-monolithic"},
		{"negative", Options{Targets: one, Settings: Settings{Rounds: -1}}, "rounds"},
		{"range too large", Options{Targets: one, Settings: Settings{Range: gib}}, "part size"},
	} {
		err := test.options.Check()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestPickKeepsTheOrder(t *testing.T) {
	picked, err := pick([]string{"image-pull", "pull"})
	if err != nil || len(picked) != 2 || picked[0].name != "pull" || picked[1].name != "image-pull" {
		t.Errorf("picked %v, error %v", picked, err)
	}
}

func TestSameTargetTwice(t *testing.T) {
	targets, err := parseTargets(Options{Targets: []string{"http://h", "http://h"}})
	if err != nil || targets[0].name != "h" || targets[1].name != "h#2" {
		t.Errorf("targets %v, error %v", targets, err)
	}
}

func TestContent(t *testing.T) {
	c := newContent()
	var seen []string
	for _, sizes := range [][]int64{{1, 7, 8}, {1000, 1}, {100_000}, {100_000, 12}} {
		blobs := c.fresh(sizes...)
		for i, b := range blobs {
			if int64(len(b.data)) != sizes[i] || b.size != sizes[i] || digest.FromBytes(b.data) != b.digest {
				t.Errorf("blob of %d: %d bytes, size %d, digest %s", sizes[i], len(b.data), b.size, b.digest)
			}
			if sizes[i] >= 8 {
				seen = append(seen, b.digest.String())
			}
		}
	}
	slices.Sort(seen)
	if n := len(seen); len(slices.Compact(seen)) != n {
		t.Error("the same content twice")
	}
}

func TestManifestTemplate(t *testing.T) {
	blobs := newContent().fresh(10, 20, 30)
	template, err := newTemplate(blobs)
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[uint64]string{0: "0000000000000000", 0xbeef: "000000000000beef", math.MaxUint64: "ffffffffffffffff"} {
		body := template.numbered(n)
		var m v1.Manifest
		if err := json.Unmarshal(body, &m); err != nil || m.Annotations[numberKey] != want {
			t.Errorf("number %x: %v, %s", n, err, body)
		}
		if m.SchemaVersion != 2 || m.Config.Digest != blobs[0].digest || len(m.Layers) != 2 || m.Layers[1].Size != 30 {
			t.Errorf("manifest %s", body)
		}
	}
}

// Storage behind a registry gets the request, but not the registry's password.
func TestRedirect(t *testing.T) {
	var password bool
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, _, password = q.BasicAuth()
		w.Write([]byte("bytes of " + q.URL.Path))
	}))
	defer storage.Close()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if _, _, ok := q.BasicAuth(); !ok {
			w.WriteHeader(401)
			return
		}
		if q.URL.Path == "/loop" {
			http.Redirect(w, q, "/loop", http.StatusFound)
			return
		}
		http.Redirect(w, q, storage.URL+q.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer front.Close()
	base, err := url.Parse(strings.Replace(front.URL, "//", "//me:secret@", 1))
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(base, nil)
	defer s.close()
	get := func(method, path string) (answer, error) {
		return s.do(context.Background(), request{method: method, url: &url.URL{Scheme: "http", Host: base.Host, Path: path}, want: 200})
	}
	if a, err := get("GET", "/x"); err != nil || a.size != int64(len("bytes of /x")) || password {
		t.Errorf("%+v, error %v, password sent on: %v", a, err, password)
	}
	if _, err := get("GET", "/loop"); err == nil || !strings.Contains(err.Error(), "302 Found") {
		t.Errorf("loop: %v", err)
	}
	if _, err := get("PUT", "/x"); err == nil || !strings.Contains(err.Error(), "307") {
		t.Errorf("PUT: %v", err)
	}
}

// A server that has enough closes before the body is through: its answer counts.
func TestEarlyRefusal(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
	}))
	defer server.Close()
	base, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(base, nil)
	defer s.close()
	for range 3 {
		_, err = s.do(t.Context(), request{method: "PUT", url: base, want: 201, body: make([]byte, 200_000)})
		if err == nil || !strings.Contains(err.Error(), "413 Request Entity Too Large: too large") {
			t.Errorf("error %v", err)
		}
	}
}

func TestTLSAndCredentials(t *testing.T) {
	r := emptyRegistry()
	r.user = "me:secret"
	r.Server = httptest.NewTLSServer(r)
	defer r.Close()
	o := tiny(strings.Replace(r.URL, "//", "//me:secret@", 1))
	o.Workloads = []string{"push-chunked", "manifest-get"}
	if err := Run(t.Context(), o, &strings.Builder{}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown certificate: %v", err)
	}
	o.InsecureTLS = true
	report, err := measureJSON(t, t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if u := report.Targets[0].URLs[0]; u != r.URL || r.left() != nothingLeft {
		t.Errorf("URL %s; left behind: %s", u, r.left())
	}
}

// The workers of one target spread over its nodes.
func TestSeveralNodes(t *testing.T) {
	r := newRegistry(t)
	second := httptest.NewServer(r)
	defer second.Close()
	hosts := make(chan string, 10_000)
	r.saw = func(q *http.Request) { hosts <- q.Host }
	o := tiny("mesh=" + r.URL + "/team," + second.URL + "/team")
	o.Workloads = []string{"blob-head"}
	report, err := measureJSON(t, t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if got := report.Targets[0]; len(got.URLs) != 2 || !strings.HasPrefix(got.Repositories, "team/flotilla-bench-") {
		t.Errorf("target %+v", got)
	}
	close(hosts)
	count := map[string]int{}
	for host := range hosts {
		count[host]++
	}
	if len(count) != 2 {
		t.Errorf("requests by host: %v", count)
	}
}

func TestEndlessTagList(t *testing.T) {
	for name, link := range map[string]string{"starts over": `</v2/x/tags/list>; rel="next"`, "no address": "next"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", link)
			w.Write([]byte(`{"tags":["a","b"]}`))
		}))
		base, err := url.Parse(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		s := newSession(base, nil)
		if _, err := (repository{"x", newLedger()}).listTags(t.Context(), s, 2); err == nil {
			t.Errorf("%s: no error", name)
		}
		s.close()
		server.Close()
	}
}

func TestTable(t *testing.T) {
	report := Report{
		Targets: []Target{{Name: "first"}, {Name: "second"}},
		Results: []Result{
			{Workload: "pull", Target: "first", Unit: "MiB/s", Median: 1234.5, Spread: 9.6, Ratio: 1, Server: &Server{CPU: 0.3333, CPUUnit: "s/GiB", PeakBytes: 10 << 20}},
			{Workload: "pull", Target: "second", Unit: "MiB/s", Failed: "GET /x: 500 Internal Server Error"},
			{Workload: "blob-head", Target: "first", Unit: "req/s", Median: 99.96, Spread: 20, Ratio: 1, P50: 0.123, P99: 12.34, Server: &Server{CPU: 45, CPUUnit: "µs/op", PeakBytes: 1 << 20, PeakSinceStart: true}},
			{Workload: "blob-head", Target: "second", Unit: "req/s", Median: 10, Spread: 0, Ratio: 0.125},
		},
		Notes: []string{"A note."},
	}
	want := `
WORKLOAD   REGISTRY      MEDIAN  SPREAD  RATIO  P50 ms  P99 ms  SERVER CPU  PEAK MEMORY
pull       first     1234 MiB/s    ±10%   1.00                  0.33 s/GiB     10.0 MiB
           second    failed: GET /x: 500 Internal Server Error
blob-head  first      100 req/s    ±20%   1.00    0.12    12.3  45.0 µs/op   1.00 MiB *
           second    10.0 req/s     ±0%   0.12

SPREAD: half the range of the rounds. RATIO: to first, median of the rounds' own ratios, above 1 is better.
PEAK MEMORY with *: since the process started; resetting it was not permitted.
A note.
`
	var out strings.Builder
	if err := report.write(&out, false); err != nil || "\n"+out.String() != want {
		t.Errorf("error %v, table:\n%s", err, out.String())
	}
}
