package node

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/flotilla-registry/flotilla/api"
)

// metrics is what /metrics shows. Requests are counted as they end; all else
// is read from the parts when somebody asks.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	bytesIn  *prometheus.CounterVec
	bytesOut *prometheus.CounterVec
}

func newMetrics(n *Node) *metrics {
	route := []string{"route"}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flotilla_http_requests_total", Help: "Requests on the public port.",
		}, []string{"route", "method", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "flotilla_http_request_seconds", Help: "Time from the header to the last byte of the answer.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 10),
		}, route),
		bytesIn: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flotilla_http_received_bytes_total", Help: "Body bytes from clients.",
		}, route),
		bytesOut: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flotilla_http_sent_bytes_total", Help: "Body bytes to clients.",
		}, route),
	}
	m.registry.MustRegister(m.requests, m.seconds, m.bytesIn, m.bytesOut, &parts{n},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// observe is called once for each request on the public port. Routes and
// statuses are few, and so are methods: api names only those it serves.
func (m *metrics) observe(s api.Served) {
	m.requests.WithLabelValues(s.Route, s.Method, strconv.Itoa(s.Status)).Inc()
	m.seconds.WithLabelValues(s.Route).Observe(s.Duration.Seconds())
	m.bytesIn.WithLabelValues(s.Route).Add(float64(s.In))
	m.bytesOut.WithLabelValues(s.Route).Add(float64(s.Out))
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// parts reads the figures of the node's parts when they are asked for.
type parts struct{ n *Node }

// Describe implements prometheus.Collector: the figures are found by
// collecting, so there is one list of them.
func (p *parts) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(p, ch) }

// Collect implements prometheus.Collector.
func (p *parts) Collect(ch chan<- prometheus.Metric) {
	emit := func(kind prometheus.ValueType, name, help string, v float64) {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("flotilla_"+name, help, nil, nil), kind, v)
	}
	count := func(name, help string, v float64) { emit(prometheus.CounterValue, name, help, v) }
	gauge := func(name, help string, v float64) { emit(prometheus.GaugeValue, name, help, v) }
	p.names(count, gauge)
	p.bytes(count, gauge)
}

type figure func(name, help string, v float64)

func (p *parts) names(count, gauge figure) {
	raft := p.n.catalog.Status()
	leads := 0.0
	if raft.Leader == p.n.id() {
		leads = 1
	}
	gauge("raft_leader", "1 where this node leads.", leads)
	gauge("raft_has_leader", "1 where this node knows a leader.", boolean(raft.Leader != ""))
	gauge("raft_voters", "Voters in this node's configuration.", float64(len(raft.Voters)))
	gauge("raft_replicas", "Non-voters in this node's configuration.", float64(len(raft.Replicas)))
	gauge("raft_last_contact_seconds", "Time since the leader was last heard.", raft.LastContact.Seconds())
	count("raft_term", "Raft term.", float64(raft.Term))
	count("raft_commit_index", "Index of the last entry known to be committed.", float64(raft.Commit))
	count("raft_applied_index", "Index of the last entry applied here.", float64(raft.Applied))
	count("raft_proposals_total", "Entries that this node proposed as leader.", float64(raft.Proposals))
	count("raft_read_rounds_total", "Rounds of the voters that this node held as leader to prove reads current.", float64(raft.ReadRounds))
	gauge("members", "Members of the mesh.", float64(len(p.n.catalog.Members())))
	gauge("members_alive", "Members that gossip shows alive, this node included.", float64(len(p.n.members.Alive())))
}

func (p *parts) bytes(count, gauge figure) {
	d := p.n.disk.Stats()
	free, total, err := p.n.disk.Free()
	if err == nil {
		gauge("disk_free_bytes", "Free bytes on the data disk.", float64(free))
		gauge("disk_total_bytes", "Size of the data disk.", float64(total))
	}
	gauge("disk_full", "1 while pushes are refused for want of space.", boolean(p.n.disk.Full() != nil))
	count("disk_written_bytes_total", "Bytes written to files of any kind.", float64(d.BytesWritten))
	count("disk_blobs_stored_total", "Blobs made durable.", float64(d.BlobsStored))
	count("disk_file_syncs_total", "Syncs of files.", float64(d.FileSyncs))
	count("disk_folder_syncs_total", "Syncs of folders.", float64(d.FolderSyncs))
	count("disk_folder_syncs_shared_total", "Commits that shared another's folder sync.", float64(d.FolderSyncsShared))
	gauge("uploads_open", "Upload sessions that live here.", float64(d.UploadsOpen))
	gauge("fills_active", "Downloads from peers under way.", float64(d.FillsActive))
	count("fills_started_total", "Downloads from peers begun.", float64(d.FillsStarted))
	count("fills_failed_total", "Downloads from peers that came to nothing.", float64(d.FillsFailed))
	count("fill_sources_replaced_total", "Sources that died or fell silent in a download.", float64(d.SourcesReplaced))
	count("fill_sources_lied_total", "Downloads whose bytes had another digest.", float64(d.SourcesLied))
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
