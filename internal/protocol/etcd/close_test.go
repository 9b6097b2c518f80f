package etcd

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/quorate/quorate/internal/shard"
)

// held is a client of shards that does not answer while it is held.
type held struct {
	shard.Client
	on      atomic.Bool
	waiting atomic.Int64
	release chan struct{}
}

// Submit implements shard.Client.
func (h *held) Submit(ctx context.Context, r shard.Route, c shard.Command) *shard.Future {
	if h.on.Load() {
		h.waiting.Add(1)
		<-h.release
	}
	return h.Client.Submit(ctx, r, c)
}

// recipe makes a call of the Lock or Election services.
func (r *rig) recipe(ctx context.Context, method string, in map[string]any) error {
	for _, rc := range recipes() {
		if rc.method != method {
			continue
		}
		m := message{dynamicpb.NewMessage(rc.in)}
		for k, v := range in {
			m.set(k, v)
		}
		full, out := protoreflect.FullName("/"+rc.service+"/"+rc.method), dynamicpb.NewMessage(rc.out)
		if rc.stream == nil {
			return r.conn.Invoke(ctx, string(full), m.Message, out)
		}
		st, err := r.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, string(full))
		if err == nil {
			err = errors.Join(st.SendMsg(m.Message), st.CloseSend())
		}
		for err == nil {
			err = st.RecvMsg(out)
		}
		return err
	}
	return fmt.Errorf("no method %s", method)
}

// Who waits for something that may never come is told at once that the server stops, by the error with which etcd's clients come again. A call
// that is under way ends well.
func TestClose_WhatIsUnderWay(t *testing.T) {
	h := &held{release: make(chan struct{})}
	r := newRigOver(t, Config{CloseTimeout: time.Minute}, func(c shard.Client) shard.Client { h.Client = c; return h })
	ends := map[string]chan error{}
	begin := func(what string, f func() error) {
		end := make(chan error, 1)
		ends[what] = end
		go func() { end <- f() }()
	}
	w, err := r.watch.Watch(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("a")}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	begin("watch", func() error { _, err := w.Recv(); return err })
	g, err := r.lease.LeaseGrant(r.ctx(), &pb.LeaseGrantRequest{TTL: 60})
	if err != nil {
		t.Fatal(err)
	}
	k, err := r.lease.LeaseKeepAlive(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Send(&pb.LeaseKeepAliveRequest{ID: g.ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Recv(); err != nil {
		t.Fatal(err)
	}
	begin("keep alive", func() error { _, err := k.Recv(); return err })
	if err := r.recipe(r.ctx(), "Lock", map[string]any{"name": []byte("l")}); err != nil {
		t.Fatal(err)
	}
	ctx := r.ctx()
	begin("lock", func() error { return r.recipe(ctx, "Lock", map[string]any{"name": []byte("l")}) })
	begin("campaign", func() error {
		return r.recipe(ctx, "Campaign", map[string]any{"name": []byte("l"), "value": []byte("v")})
	})
	begin("observe", func() error { return r.recipe(ctx, "Observe", map[string]any{"name": []byte("none")}) })
	resp, err := http.Post("http://"+r.addr+"/v3/watch", "application/json", strings.NewReader(`{"create_request": {"key": "YQ=="}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing is sent
	begin("watch over JSON", func() error { b, err := io.ReadAll(resp.Body); return errors.Join(errors.New(string(b)), err) })
	waiters := func() bool {
		a, err := r.kv.Range(ctx, &pb.RangeRequest{Key: []byte("l/"), RangeEnd: []byte("l0"), CountOnly: true})
		return err == nil && a.Count == 3
	}
	await(t, "both wait for the lock", waiters)
	h.on.Store(true)
	puts := make(chan error, 2)
	go func() {
		_, err := r.kv.Put(ctx, &pb.PutRequest{Key: []byte("b")})
		puts <- err
	}()
	go func() {
		resp, err := http.Post("http://"+r.addr+"/v3/kv/put", "application/json", strings.NewReader(`{"key": "`+base64.StdEncoding.EncodeToString([]byte("c"))+`"}`))
		if err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		puts <- errors.Join(err, resp.Body.Close())
	}()
	await(t, "both puts wait", func() bool { return h.waiting.Load() == 2 })
	h.on.Store(false)
	closed := make(chan struct{})
	go func() { r.s.Close(); close(closed) }()
	for what, end := range ends {
		select {
		case err := <-end:
			if !same(err, rpctypes.ErrGRPCStopped) && (what != "watch over JSON" || !strings.Contains(err.Error(), "etcdserver: server stopped")) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("%s has not ended", what)
		}
	}
	select {
	case <-closed:
		t.Error("the server did not wait for the puts")
	case err := <-puts:
		t.Errorf("a put ended: %v", err)
	default:
	}
	close(h.release)
	for range 2 {
		if err := <-puts; err != nil {
			t.Errorf("a put that was under way: %v", err)
		}
	}
	<-closed
}

// What waits for longer than it may is cut off, and told so.
func TestClose_TakesNoLongerThanItMay(t *testing.T) {
	h := &held{release: make(chan struct{})}
	r := newRigOver(t, Config{CloseTimeout: 100 * time.Millisecond}, func(c shard.Client) shard.Client { h.Client = c; return h })
	r.put("a", "1")
	h.on.Store(true)
	ended := make(chan error, 1)
	go func() {
		_, err := r.kv.Put(r.ctx(), &pb.PutRequest{Key: []byte("b")})
		ended <- err
	}()
	await(t, "the put waits", func() bool { return h.waiting.Load() == 1 })
	time.AfterFunc(3*time.Second, func() { close(h.release) })
	began := time.Now()
	go r.s.Close()
	if err := <-ended; status.Code(err) != codes.Unavailable || time.Since(began) > 2500*time.Millisecond {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}
