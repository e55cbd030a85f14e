package node

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/mesh"
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

// transfersDesc is of the figures that there is one of for each zone.
func transfersDesc() *prometheus.Desc {
	return prometheus.NewDesc("flotilla_transfers", "Blobs that this node receives now, by the zone of the node that sends.", []string{"from_zone"}, nil)
}

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
	p.transfers(count)
	for zone, n := range p.inbound() {
		ch <- prometheus.MustNewConstMetric(transfersDesc(), prometheus.GaugeValue, float64(n), zone)
	}
	p.healing(count, gauge)
	p.zones(ch)
}

// inbound counts what this node receives now, from each zone of the mesh.
func (p *parts) inbound() map[string]int {
	names, zones := p.n.nodeNames(), map[string]int{p.n.cfg.Zone: 0}
	for _, name := range names {
		zones[name.Zone] = 0
	}
	for _, t := range p.n.blobs.Transfers() {
		if name, known := names[t.From]; known {
			zones[name.Zone]++
		}
	}
	return zones
}

type figure func(name, help string, v float64)

func (p *parts) names(count, gauge figure) {
	raft := p.n.catalog.Status()
	gauge("raft_leader", "1 where this node leads.", boolean(raft.Leader == p.n.id()))
	gauge("raft_has_leader", "1 where this node knows a leader.", boolean(raft.Leader != ""))
	gauge("raft_voters", "Voters in this node's configuration.", float64(len(raft.Voters)))
	gauge("raft_replicas", "Non-voters in this node's configuration.", float64(len(raft.Replicas)))
	gauge("raft_last_contact_seconds", "Time since the leader was last heard.", raft.LastContact.Seconds())
	count("raft_term", "Raft term.", float64(raft.Term))
	count("raft_commit_index", "Index of the last entry known to be committed.", float64(raft.Commit))
	count("raft_applied_index", "Index of the last entry applied here.", float64(raft.Applied))
	count("raft_proposals_total", "Entries that this node proposed as leader.", float64(raft.Proposals))
	count("raft_read_rounds_total", "Rounds that this node asked of the leader to prove its reads current; one serves every read that waits for it.", float64(raft.ReadRounds))
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

func (p *parts) transfers(count figure) {
	b := p.n.blobs.Stats()
	count("peer_fetches_served_total", "Requests for a blob that a peer began to serve.", float64(b.FetchServed))
	count("peer_fetches_denied_total", "Requests for a blob that a peer did not have.", float64(b.FetchDenied))
	count("peer_fetches_failed_total", "Requests for a blob that no peer answered in time.", float64(b.FetchFailed))
	count("peer_received_bytes_total", "Bytes of blobs fetched from peers.", float64(b.BytesFromPeers))
	count("peer_sent_bytes_total", "Bytes of blobs sent to peers.", float64(b.BytesToPeers))
	count("gateway_fetches_total", "Fetches that this zone's gateway served.", float64(b.GatewayServed))
	count("gateway_fills_total", "Downloads begun here since a node of the zone asked.", float64(b.GatewayFills))
	count("misses_unknown_total", "Misses proved: every member denied having the blob.", float64(b.MissUnknown))
	count("misses_unavailable_total", "Misses that could not be proved.", float64(b.MissUnavailable))
	count("passed_through_total", "Blobs served without a copy here, the disk being full.", float64(b.PassedThrough))
	count("copies_placed_total", "Copies that peers made, or had already, of what was pushed here.", float64(b.CopiesPlaced))
	count("copies_held_total", "Of these, copies that they had already.", float64(b.CopiesHeld))
	count("copies_failed_total", "Attempts to place a copy that failed.", float64(b.CopiesFailed))
	count("pushes_short_total", "Pushes refused since too few copies could be made durable.", float64(b.PlaceShort))
	count("uploads_forwarded_total", "Upload requests passed on to the upload's home.", float64(b.UploadsForwarded))
}

// zones is what went over each line between this node's zone and another. There
// are as many figures as there are zones, directions and causes.
func (p *parts) zones(ch chan<- prometheus.Metric) {
	received, sent := p.n.blobs.Traffic()
	for _, f := range []struct {
		name, help string
		list       []mesh.Traffic
	}{
		{"zone_bytes_total", "Bytes of blobs that this node received from other zones: summed over all nodes, what went from one zone to another.", received},
		{"zone_sent_bytes_total", "The same bytes where they leave: those that this node sent to other zones.", sent},
	} {
		desc := prometheus.NewDesc("flotilla_"+f.name, f.help, []string{"from", "to", "cause"}, nil)
		for _, t := range f.list {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(t.Bytes), t.From, t.To, string(t.Cause))
		}
	}
}

// healing is what this node's passes saw and did. Each blob is counted at one
// node, so that sums over the nodes are those of the mesh.
func (p *parts) healing(count, gauge figure) {
	h, b, d := p.n.blobs.Health(), p.n.blobs.Stats(), p.n.disk.Stats()
	gauge("blobs", "Blobs that a repository needs, counted here.", float64(h.Blobs))
	gauge("blobs_short", "Of these, blobs with too few copies.", float64(h.Short))
	gauge("blobs_one_zone", "Of these, blobs whose copies are all in one zone, where there are two.", float64(h.OneZone))
	gauge("blobs_lost", "Of these, blobs that no member has any more.", float64(h.Lost))
	gauge("blobs_unkept", "Blobs that this node lacks and is to keep since its zone pins them.", float64(h.Unkept))
	gauge("repair_bytes", "Bytes of copies that this node has still to make.", float64(h.BytesToMove))
	gauge("repair_seconds", "Time that this will take.", h.TimeToGo.Seconds())
	gauge("held_blobs", "Copies here.", float64(h.HeldBlobs))
	gauge("held_bytes", "Their bytes.", float64(h.HeldBytes))
	gauge("cache_blobs", "Copies here that need not be here.", float64(h.CacheBlobs))
	gauge("cache_bytes", "Their bytes.", float64(h.CacheBytes))
	count("passes_total", "Looks at all blobs that are held here or should be.", float64(b.Passes))
	count("repaired_total", "Blobs of which missing copies were made.", float64(b.Repaired))
	count("repairs_failed_total", "Blobs of which they could not be made, for now.", float64(b.RepairFailed))
	count("dropped_total", "Copies dropped since nothing named them.", float64(b.Dropped))
	count("dropped_bytes_total", "Their bytes.", float64(b.DroppedBytes))
	count("evicted_total", "Copies dropped since they need not be here and took too much space.", float64(b.Evicted))
	count("evicted_bytes_total", "Their bytes.", float64(b.EvictedBytes))
	count("scrubbed_bytes_total", "Stored bytes that were read again.", float64(d.BytesScrubbed))
	count("blobs_bad_total", "Stored blobs found damaged.", float64(d.BlobsBad))
	count("blobs_unreadable_total", "Stored blobs that the disk could not read.", float64(d.BlobsUnreadable))
	gauge("quarantined", "Damaged files kept aside.", float64(d.Quarantined))
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
