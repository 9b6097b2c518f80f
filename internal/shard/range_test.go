package shard

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/storage"
)

// TestTx_DeleteRange_IsAsDeletingEachRow runs commands of all kinds on a map, on a machine that commits each entry, and on one that commits now and
// then and has a cache. All see the same at every step, and both machines have the same digest.
func TestTx_DeleteRange_IsAsDeletingEachRow(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	each := newBench(t, MachineConfig{})
	some := newBench(t, MachineConfig{Cache: storage.NewRowCache(1 << 20)})
	model := map[string]string{}
	key := func() string { return fmt.Sprintf("k%02d", rng.IntN(40)) }
	render := func(from, to string) string {
		var out []string
		for _, k := range slices.Sorted(maps.Keys(model)) {
			if k >= from && (to == "" || k < to) {
				out = append(out, k+"="+model[k])
			}
		}
		return strings.Join(out, " ")
	}
	// steps does a few things, or plays them again from what was written down.
	type step struct{ kind, k, v string }
	play := func(tx *Tx, steps []step) {
		for _, s := range steps {
			switch s.kind {
			case "set":
				tx.Set([]byte(s.k), []byte(s.v))
			case "bulk":
				tx.SetBulk([]byte(s.k), []byte(s.v))
			case "delete":
				tx.Delete([]byte(s.k))
			case "range":
				tx.DeleteRange([]byte(s.k), []byte(s.v))
			case "get":
				if v, ok := tx.Get([]byte(s.k)); ok != (s.v != "") || string(v) != s.v {
					t.Errorf("get %s: got %q, %v, want %q", s.k, v, ok, s.v)
				}
			case "scan":
				if got := scanAll(tx, s.k, ""); got != s.v {
					t.Errorf("scan from %s:\n got %s\nwant %s", s.k, got, s.v)
				}
			}
		}
	}
	steps := func(n int) []step {
		var out []step
		for range n {
			s := step{k: key()}
			switch rng.IntN(10) {
			case 0, 1, 2:
				s.kind, s.v = "set", fmt.Sprint(rng.IntN(1000))
				model[s.k] = s.v
			case 3:
				s.kind, s.v = "bulk", fmt.Sprint(rng.IntN(1000))
				model[s.k] = s.v
			case 4:
				s.kind = "delete"
				delete(model, s.k)
			case 5:
				s.kind, s.v = "range", key()
				maps.DeleteFunc(model, func(k, _ string) bool { return k >= s.k && k < s.v })
			case 6, 7, 8:
				s.kind, s.v = "get", model[s.k]
			case 9:
				s.kind, s.v = "scan", render(s.k, "")
			}
			out = append(out, s)
		}
		return out
	}
	out := Applied{}
	for i := range 3000 {
		before := steps(rng.IntN(4))
		kept := maps.Clone(model)
		undone := steps(rng.IntN(4))
		model = kept
		after := steps(rng.IntN(4))
		f := func(tx *Tx) ([]byte, error) {
			play(tx, before)
			_, _ = tx.Try(func() ([]byte, error) {
				play(tx, undone)
				return nil, errs.New(errs.Conflict, "no")
			})
			play(tx, after)
			return nil, nil
		}
		each.mod.apply["run"], some.mod.apply["run"] = f, f
		e := each.batch(BatchHeader{Session: 1, Seq: uint64(i + 1), Low: uint64(i + 1), Stamp: each.now}, "run")
		each.entry(e)
		if err := some.m.Apply(some.m.Applied().Index+1, 1, e, &out); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(5) == 0 {
			if err := some.m.Commit(&out); err != nil {
				t.Fatal(err)
			}
			some.mod.query = func(v View, _ []byte) ([]byte, error) { return []byte(scanAll(v, "", "")), nil }
			if got, want := some.get(""), render("", ""); got != want {
				t.Fatalf("after %d:\n got %s\nwant %s", i, got, want)
			}
		}
		if each.m.Digest() != some.m.Digest() {
			t.Fatalf("the digests differ after %d", i)
		}
		if t.Failed() {
			t.Fatalf("at %d: %v, undone %v, %v", i, before, undone, after)
		}
	}
}

// A digest sees which range was deleted.
func TestTx_DeleteRange_IsInTheDigest(t *testing.T) {
	seen := map[uint64]string{}
	for _, r := range [][2]string{{"a", "b"}, {"a", "c"}, {"b", "c"}, {"", "c"}} {
		b := newBench(t, MachineConfig{})
		res := b.run(func(tx *Tx) ([]byte, error) {
			tx.DeleteRange([]byte(r[0]), []byte(r[1]))
			return nil, nil
		})
		if res.Revision != 1 {
			t.Errorf("%v: revision %d, want 1", r, res.Revision)
		}
		if was, ok := seen[b.m.Digest()]; ok {
			t.Errorf("%v has the digest of %s", r, was)
		}
		seen[b.m.Digest()] = fmt.Sprint(r)
	}
}
