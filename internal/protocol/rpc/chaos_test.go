package rpc

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
)

// Whatever clients do that keep to the protocol, and whenever the server closes, each call ends, and the server within its time.
func TestConn_EachCallEnds(t *testing.T) {
	all := int64(0)
	defer func() {
		if all < 1000 {
			t.Errorf("only %d calls were made", all)
		}
	}()
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			var open, begun atomic.Int64
			enter := func() func() {
				open.Add(1)
				begun.Add(1)
				return func() { open.Add(-1) }
			}
			cfg := config()
			cfg.CloseTimeout = 2 * time.Second
			s := New(cfg)
			s.RegisterService(service(map[string]unary{
				"Large": func(context.Context, *blob) (*blob, error) { defer enter()(); return of(make([]byte, 200_000)), nil },
				"Echo":  func(_ context.Context, in *blob) (*blob, error) { defer enter()(); return in, nil },
				"Wait": func(ctx context.Context, _ *blob) (*blob, error) {
					defer enter()()
					<-ctx.Done()
					return nil, ctx.Err()
				},
			}, map[string]grpc.StreamHandler{"Echoes": func(_ any, ss grpc.ServerStream) error {
				defer enter()()
				return echoes(nil, ss)
			}}), nil)
			w := newWire(t, s, nil, http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(rnd.IntN(100_000))})
			acks := rnd.IntN(2) == 0
			go func() {
				for got := range w.in {
					if acks && got == "PING ack=false" {
						// The framer is for one goroutine, and a pipe takes each write as a whole.
						go func() { _, _ = w.nc.Write(append([]byte{0, 0, 8, 6, 1, 0, 0, 0, 0}, leavePing[:]...)) }()
					}
				}
			}()
			var there *conn
			synctest.Wait()
			s.each(func(c *conn) { there = c })
			var calls []uint32
			next := uint32(1)
			some := func() uint32 { return calls[rnd.IntN(len(calls))] }
			paths := []string{"Large", "Echo", "Wait", "Echoes", "None"}
			closed := make(chan struct{})
			closing := rnd.IntN(400)
			for i := range 400 {
				if i == closing {
					go func() {
						began := time.Now()
						s.Close()
						if took := time.Since(began); took > cfg.CloseTimeout+lastWords {
							t.Errorf("seed %d: it took %v to close", seed, took)
						}
						close(closed)
					}()
				}
				switch k := rnd.IntN(20); {
				case k < 7 || len(calls) == 0:
					w.open(next, "/test.Test/"+paths[rnd.IntN(len(paths))], false)
					if calls = append(calls, next); rnd.IntN(5) > 0 {
						w.data(next, message("abc"), rnd.IntN(4) > 0)
					}
					next += 2
				case k < 9:
					w.data(some(), message("x")[:rnd.IntN(8)], rnd.IntN(3) == 0)
				case k < 12:
					id := some()
					w.write(func() error { return w.fr.WriteRSTStream(id, http2.ErrCodeCancel) })
				case k < 15:
					id, n := some(), uint32(1+rnd.IntN(50_000))
					w.write(func() error { return w.fr.WriteWindowUpdate(id, n) })
				case k < 17:
					n := uint32(1 + rnd.IntN(100_000))
					w.write(func() error { return w.fr.WriteWindowUpdate(0, n) })
				case k < 18:
					n := uint32(rnd.IntN(100_000))
					w.write(func() error { return w.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: n}) })
				default:
					time.Sleep(time.Duration(rnd.IntN(20_000)) * time.Millisecond)
				}
			}
			<-closed
			<-w.done
			synctest.Wait()
			if open.Load() != 0 || there.running.Load() != 0 {
				t.Errorf("seed %d: %d calls are open, %d count", seed, open.Load(), there.running.Load())
			}
			all += begun.Load()
			_ = w.nc.Close()
		})
	}
}
