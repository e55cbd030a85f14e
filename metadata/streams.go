package metadata

import (
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// streams is the network under raft's own transport. A server's raft address
// is its UUID, like its ID: that a node moves is then no change of raft's
// configuration, and dial finds where it is today.
//
// raft.NetworkTransport does not end the connections that it serves when it is
// closed; streams keeps them, ends them, and waits for their handlers.
type streams struct {
	id   string
	lis  net.Listener
	dial func(id string, timeout time.Duration) (net.Conn, error)

	in       chan incoming
	done     chan struct{}
	pump     sync.WaitGroup // the goroutine that accepts
	handlers sync.WaitGroup // raft's, one for each connection served

	mu     sync.Mutex
	closed bool
	open   map[*stream]struct{}
}

type incoming struct {
	conn net.Conn
	err  error
}

// stream is one connection, accepted or dialled.
type stream struct {
	net.Conn
	s      *streams
	served bool
	to     string // whom it was dialled to
	once   sync.Once
}

// memberAddr is a UUID where raft wants an address.
type memberAddr string

func (memberAddr) Network() string  { return "flotilla" }
func (a memberAddr) String() string { return string(a) }

// newStreams takes over lis.
func newStreams(id string, lis net.Listener, dial func(string, time.Duration) (net.Conn, error)) *streams {
	s := &streams{
		id: id, lis: lis, dial: dial,
		in: make(chan incoming), done: make(chan struct{}),
		open: make(map[*stream]struct{}),
	}
	s.pump.Go(s.accept)
	return s
}

func (s *streams) accept() {
	for {
		conn, err := s.lis.Accept()
		select {
		case s.in <- incoming{conn, err}: // raft logs an error and pauses before it comes again
		case <-s.done:
			if conn != nil {
				conn.Close()
			}
			return
		}
	}
}

// Accept implements net.Listener.
func (s *streams) Accept() (net.Conn, error) {
	select {
	case c := <-s.in:
		if c.err != nil {
			return nil, c.err
		}
		return s.keep(c.conn, true, "")
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// Dial implements raft.StreamLayer. A call to this node itself, raft's
// TimeoutNow at the start of a mesh of one, needs no network: the port may not
// even be served yet.
func (s *streams) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	if string(address) != s.id {
		conn, err := s.dial(string(address), timeout)
		if err != nil {
			return nil, err
		}
		return s.keep(conn, false, string(address))
	}
	near, far := net.Pipe()
	select {
	case s.in <- incoming{conn: far}:
		return s.keep(near, false, s.id)
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener: this node's UUID.
func (s *streams) Addr() net.Addr { return memberAddr(s.id) }

func (s *streams) keep(conn net.Conn, served bool, to string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	st := &stream{Conn: conn, s: s, served: served, to: to}
	s.open[st] = struct{}{}
	if served {
		s.handlers.Add(1)
	}
	return st, nil
}

// Close implements net.Conn. The handler of a served stream closes it as the
// last thing it does.
func (st *stream) Close() error {
	err := st.Conn.Close()
	st.once.Do(func() {
		st.s.mu.Lock()
		delete(st.s.open, st)
		st.s.mu.Unlock()
		if st.served {
			st.s.handlers.Done()
		}
	})
	return err
}

// cut ends the streams to those who are gone, and all that are served. Who
// opened one was proved when it was opened, and whether it still may is found
// out by letting everybody open theirs again, which raft does by itself.
func (s *streams) cut(gone func(id string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.open {
		if st.served || gone(st.to) {
			st.Conn.Close()
		}
	}
}

// Close implements net.Listener: it ends the listener and every stream, and
// does not wait for their handlers, since raft calls it under a lock.
func (s *streams) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	close(s.done)
	err := s.lis.Close()
	for st := range s.open {
		st.Conn.Close()
	}
	return err
}

// wait returns when nothing of streams runs any more; after Close.
func (s *streams) wait() {
	s.pump.Wait()
	s.handlers.Wait()
}
