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
	hits := 0
	for range 50_000 {
		k := fmt.Appendf(nil, "k%d", rng.IntN(300))
		switch rng.IntN(3) {
		case 0:
			v := bytes.Repeat([]byte{byte(rng.IntN(256))}, rng.IntN(400))
			c.Keep(c.Row(k), v, true)
			model[string(k)] = v
		case 1:
			if rng.IntN(10) == 0 {
				c.Keep(c.Row(k), nil, false)
				delete(model, string(k))
			} else if to := fmt.Sprintf("k%d", rng.IntN(300)); rng.IntN(300) == 0 {
				c.ForgetRange(k, []byte(to))
				maps.DeleteFunc(model, func(x string, _ []byte) bool { return x >= string(k) && x < to })
			}
		default:
			r := c.Find(k)
			if r == nil || !r.Known {
				continue
			}
			hits++
			want, ok := model[string(k)]
			if r.There != ok || !bytes.Equal(r.Value, want) {
				t.Fatalf("row %s: got %d bytes, %v; want %d bytes, %v", k, len(r.Value), r.There, len(want), ok)
			}
		}
		c.Turn()
	}
	if hits < 1000 {
		t.Errorf("only %d hits", hits)
	}
	if n := len(c.young) + len(c.old); n > 300 {
		t.Errorf("%d rows are kept", n)
	}
}
