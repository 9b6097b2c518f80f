package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/env"
)

// dated is a connection that notes the deadlines it is given for all that it does.
type dated struct {
	net.Conn
	mu  sync.Mutex
	set []time.Time
}

func (c *dated) SetDeadline(at time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set = append(c.set, at)
	return c.Conn.SetDeadline(at)
}

// limitedOnce checks that there was a limit of time and then none.
func (c *dated) limitedOnce(t *testing.T, who string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.set) != 2 || c.set[0].IsZero() || !c.set[1].IsZero() {
		t.Errorf("%s: deadlines %v, want one, and none afterwards", who, c.set)
	}
}

// A handshake has a limit of time; a link that was made has none, however long nothing is sent.
func TestHandshake_IsLimitedAndTheLinkIsNot(t *testing.T) {
	here, there := net.Pipe()
	caller, called := &dated{Conn: here}, &dated{Conn: there}
	heard := make(chan string, 1)
	peer := &Transport{
		cfg: Config{
			Cluster: "c", Shards: 1, Self: 2, Peers: map[NodeID]string{1: ""}, FrameBytesMax: 100,
			OnHello: func(_ NodeID, h []byte) { heard <- string(h) }, OnFrame: func(NodeID, []byte) {},
		},
		env: env.Real(),
	}
	ended := make(chan error, 1)
	go func() { ended <- peer.receive(called) }()
	l := newLink(&Transport{cfg: Config{Cluster: "c", Shards: 1, Self: 1, Hello: []byte("hello")}}, 2, "")
	if err := l.greet(caller); err != nil {
		t.Fatal(err)
	}
	if h := <-heard; h != "hello" {
		t.Errorf("it heard %q", h)
	}
	if err := caller.Close(); err != nil {
		t.Fatal(err)
	}
	<-ended
	caller.limitedOnce(t, "who calls")
	called.limitedOnce(t, "who is called")
}

// Each thing that may be wrong with a handshake is found, and named.
func TestHandshake_WhatIsRefused(t *testing.T) {
	peer := &Transport{cfg: Config{Cluster: "c", Shards: 3, Self: 2, Peers: map[NodeID]string{1: ""}}}
	type shown struct {
		magic            string
		shards, from, to uint32
		name             string
		hello            []byte
		helloSays        uint32
		flip             uint32
		cut              int
	}
	for _, c := range []struct {
		want   string
		change func(*shown)
	}{
		{"", func(*shown) {}},
		{"", func(s *shown) { s.hello = make([]byte, HelloBytesMax); s.helloSays = HelloBytesMax }},
		{"not a Quorate peer", func(s *shown) { s.magic = "QRTPEER2" }},
		{"hello is too long", func(s *shown) { s.hello = make([]byte, HelloBytesMax+1); s.helloSays = HelloBytesMax + 1 }},
		{"fails its checksum", func(s *shown) { s.flip = 1 }},
		{"this is cluster", func(s *shown) { s.name = "d" }},
		{"this is node 2, not 3", func(s *shown) { s.to = 3 }},
		{"is not a member", func(s *shown) { s.from = 9 }},
		{"shards must be the same", func(s *shown) { s.shards = 4 }},
		{"unfinished", func(s *shown) { s.cut = 12 }},
		{"unfinished", func(s *shown) { s.cut = 6 }},
		{"unfinished", func(s *shown) { s.helloSays++; s.cut = 4 }},
		{"fails its checksum", func(s *shown) { s.cut = 1 }},
	} {
		s := shown{magic: magic, shards: 3, from: 1, to: 2, name: "c", hello: []byte("h"), helloSays: 1}
		c.change(&s)
		b := []byte(s.magic)
		for _, v := range []uint32{s.shards, s.from, s.to} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		b = append(binary.LittleEndian.AppendUint16(b, uint16(len(s.name))), s.name...)
		b = append(binary.LittleEndian.AppendUint32(b, s.helloSays), s.hello...)
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)^s.flip)
		_, _, _, why := peer.readHandshake(bytes.NewReader(b[:len(b)-s.cut]))
		if c.want == "" && why != "" || !strings.Contains(why, c.want) {
			t.Errorf("got %q, want %q", why, c.want)
		}
	}
}

// What waited for an earlier connection is not sent on the next one, where half a frame would be taken for the beginning of one, and takes none of its room.
func TestLink_NothingOfAnEarlierConnectionIsLeft(t *testing.T) {
	const room = 1 << 20
	l := idleLink(room)
	l.t.Send(2, make([]byte, room/2), false)
	l.rest, l.stuck = []byte("half a frame"), true
	l.set(false, nil)
	l.t.Send(2, []byte("to nobody"), false)
	l.set(true, nil)
	l.t.Send(2, make([]byte, room), false)
	if n := l.t.Dropped(); n != 1 {
		t.Fatalf("%d frames were dropped, want the one that was sent to nobody", n)
	}
	if l.stuck {
		t.Error("it counts as stuck")
	}
	c := &slowConn{perDeadline: 2 * pieceBytes}
	if err := l.drain(c); err != nil {
		t.Fatal(err)
	}
	if f, err := readFrame(&c.got, room); err != nil || len(f) != room || c.got.Len() != 0 {
		t.Errorf("a frame of %d bytes came, %v, and %d bytes behind it", len(f), err, c.got.Len())
	}
}

// A transport that was closed takes neither a connection nor a listener.
func TestTransport_ClosedTakesNothing(t *testing.T) {
	a := startSide(t, "c", 1, nil, nil, 0)
	a.t.Close()
	here, there := net.Pipe()
	defer func() { _ = there.Close() }()
	if a.t.track(here) {
		t.Fatal("it took a connection")
	}
	if _, err := here.Write([]byte{1}); err == nil {
		t.Error("the connection is open")
	}
	ln := listen(t)
	a.t.Serve(ln)
	if err := ln.(*net.TCPListener).SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open: %v", err)
	}
}
