// Package metadata is what names mean: repositories, tags, manifests, links to
// blobs, and the members of the mesh; and beside them settings, which others
// give a meaning. All nodes agree on it by Raft.
//
// # Two halves
//
// The Catalog (catalog.go, open.go) is what the rest of the program sees. It
// proposes commands, wherever it runs, to whoever leads (writes.go,
// propose.go), and answers reads from local state: at once where the answer
// cannot change, else after a proof that the state is current (reads.go,
// readindex.go). It tells those who keep the bytes which are wanted (wanted.go)
// and which images they belong to (homes.go), lets names expire (expire.go), keeps the set of voters right (voters.go) and
// answers other nodes (peer.go, streams.go).
//
// The state (state.go) is what the log has come to: a pebble database that
// every node has a replica of. An entry is a protobuf Command (wire). What it
// does is decided in apply.go and the rules from the log alone: no clock, no
// disk, no order of a map, so that replicas never differ. keys.go is the table
// of what is stored where, record.go how values are written, query.go how they
// are read, hot.go which of them stay in memory; verdict.go lists what a command
// may come to.
//
// # Durability
//
// Raft's log (logstore.go) is synced before an entry is acknowledged. The
// state is not: it says how far it has come, in the same write, and after a
// crash the log fills in the rest. Before raft drops old entries, the state is
// synced. A snapshot (snapstore.go, snapsink.go) is a checkpoint by hard
// links, which becomes a stream of our own records (stream.go) only when
// another node needs one. Restore (snapshot.go, folder.go) builds a new
// database beside the old and switches by one small file.
//
// # Members
//
// Who is a member is agreed on like a name. The leader makes the rest follow:
// who votes (voters.go), and who owns no blobs for being away (standing.go).
// Leaving goes the same way (leave.go): a member gives up its vote, is buried,
// and leaves raft's configuration. Its id never returns; its name may, with
// another id.
//
// # Disaster
//
// A backup (backup.go, rewrite.go) is the stream of the state. Restored, its
// names and settings become those of another mesh, which keeps its identity and
// members, and its own settings where the backup has none. The leader is the
// only voter meanwhile, so that no other can be elected without them.
//
// Where the quorum is gone for good, people recover what one node holds
// (recover.go, recover_look.go), while no node of the mesh-to-be runs. That
// begins a new epoch, and nodes of two epochs never meet:
//
//   - the recovered node greets others as of the new epoch from then on, which
//     its process must see to before it opens the catalogue again: Open refuses
//     one of another epoch than Config.Epoch, and one recovered in part;
//   - a member that was kept gives up its part of the old one (SetAside), and
//     its own record of the mesh with it, keeps its UUID, its key and its blobs,
//     and joins as a blank member;
//   - whoever was not kept is buried, and would come back as a new node.
//
// # Time
//
// Ages are counted in log time: the latest `now` that a leader has put into a
// command. It never runs backwards, and all replicas see the same. Names expire
// by it (rules_expire.go), and the leader proposes that only while most voters'
// clocks agree with its own.
//
// # Names and bytes
//
// A name goes when nothing above it keeps it: tag, manifest, link, each by a
// rule of its own. Bytes are wanted while a link is on them, or while they are
// the body of a manifest too large for its entry; they are referenced, and may
// not be deleted, while any link or manifest in any repository names them. A
// digest that no member holds any more is recorded as lost (rules_lost.go):
// unknown to clients, so that the next push heals it.
//
// Bytes are placed before they are named, and until then only their age keeps
// them. So a name says until when, in log time, it may be made: half of that age
// after the log time at which placing began. Apply refuses it later, and who
// pushes places the bytes again. A mount needs no such time, for what it mounts is
// named.
//
// # Settings
//
// A setting (settings.go, rules_settings.go) is a small value under a key, which
// the catalogue does not read: who may do what is kept so, and package api/auth
// knows what it means. Its revision is the entry that wrote it. A change holds
// only while the revisions are those that it was made from, all of one change or
// nothing, and is answered when every member that seems alive has applied it, as
// deletes are. Whoever decides by settings keeps what it made of them until
// SettingsVersion rises.
//
// What depends on them in Apply comes in the command, as plain data: that a tag
// may not move is found out before the manifest is proposed, and that it does
// not move is decided when the entry is applied, whoever else pushes meanwhile.
//
// # Levels
//
// A member announces the feature level that it understands. An operation is
// proposed only when all members have its level, and what a level writes beside
// the ones below it is written only from the entry on that raised the last
// member (rules_index.go). The level of a mesh never falls: a node below it is
// refused. Level 2 brought healing and expiry with their indexes, level 3
// settings and tags that may not move, level 4 names that may come too late.
package metadata

//go:generate sh -c "protoc -I wire --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --go_out=wire --go_opt=paths=source_relative command.proto"
