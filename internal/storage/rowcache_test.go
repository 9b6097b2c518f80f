package storage

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
)

// TestRowCache_NeverWrong compares the cache with a map: it may forget, but what it knows is true.
func TestRowCache_NeverWrong(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	c := NewRowCache(20_000)
	model := map[string][]byte{}
	hits, swept := 0, 0
	for range 80_000 {
		k := fmt.Appendf(nil, "k%d", rng.IntN(300))
		switch rng.IntN(3) {
		case 0:
			v := bytes.Repeat([]byte{byte(rng.IntN(256))}, rng.IntN(400))
			r := c.Row(k)
			c.Keep(r, v, true)
			model[string(k)] = v
			if r.Known && (len(v) > c.half/64 || len(v) > 0 && c.bytes > 2*c.half) {
				t.Fatalf("a row of %d bytes is kept; %d bytes are kept in all", len(v), c.bytes)
			}
		case 1:
			if rng.IntN(10) == 0 {
				c.Keep(c.Row(k), nil, false)
				delete(model, string(k))
				break
			}
			// Mostly so small that there are soon more of them than are remembered.
			to := string(k) + "\xff"
			switch n := rng.IntN(3000); {
			case n < 3:
				to = fmt.Sprintf("k%d", rng.IntN(300))
			case n > 100:
				continue
			}
			c.ForgetRange(k, []byte(to))
			if string(k) < to && len(c.gone) == 0 {
				swept++
			}
			maps.DeleteFunc(model, func(x string, _ []byte) bool { return x >= string(k) && x < to })
			if len(c.gone) > goneMax {
				t.Fatalf("%d ranges are remembered", len(c.gone))
			}
		default:
			r := c.Find(k)
			if c.Find(k) != r {
				t.Fatalf("row %s is gone once it was found", k)
			}
			if r == nil || !r.Known {
				continue
			}
			hits++
			want, ok := model[string(k)]
			if r.There != ok || !bytes.Equal(r.Value, want) {
				t.Fatalf("row %s: got %d bytes, %v; want %d bytes, %v", k, len(r.Value), r.There, len(want), ok)
			}
		}
		sum := 0
		for k, r := range c.young {
			sum += len(k) + len(r.Value) + cachedOverhead
		}
		if c.bytes != sum {
			t.Fatalf("%d bytes are counted, and there are %d", c.bytes, sum)
		}
		if rng.IntN(400) == 0 {
			c.Turn()
		}
	}
	if hits < 1000 || swept < 10 {
		t.Errorf("only %d hits; more ranges than are remembered %d times", hits, swept)
	}
	if n := len(c.young) + len(c.old); n > 300 {
		t.Errorf("%d rows are kept", n)
	}
}

// What is kept after a range was deleted came after it.
func TestRowCache_KeptAfterARange(t *testing.T) {
	c := NewRowCache(20_000)
	r := c.Row([]byte("b"))
	c.ForgetRange([]byte("a"), []byte("c"))
	c.Keep(r, []byte("new"), true)
	if got := c.Find([]byte("b")); got == nil || !got.Known || string(got.Value) != "new" {
		t.Errorf("got %+v", got)
	}
}

// One range more than are remembered: rows in it are forgotten, and those beside it are not.
func TestRowCache_OneRangeTooMany(t *testing.T) {
	for _, old := range []bool{false, true} {
		c := NewRowCache(800)
		for i := range goneMax {
			c.ForgetRange(fmt.Appendf(nil, "a%02d", i), fmt.Appendf(nil, "a%02dz", i))
		}
		for _, k := range []string{"b", "c", "d"} {
			c.Keep(c.Row([]byte(k)), []byte("v"), true)
		}
		if old {
			c.Turn()
		}
		if (len(c.old) == 3) != old {
			t.Fatalf("%d rows are old", len(c.old))
		}
		if c.ForgetRange([]byte("b"), []byte("c")); len(c.gone) != 0 {
			t.Fatalf("%d ranges are remembered", len(c.gone))
		}
		for k, want := range map[string]bool{"b": false, "c": true, "d": true} {
			if r := c.Find([]byte(k)); (r != nil && r.Known) != want {
				t.Errorf("old %v: row %s: %+v, known should be %v", old, k, r, want)
			}
		}
	}
}
