package storage

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func TestSpans_AreASetOfKeys(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var s spans
		in := map[int]bool{}
		key := func(i int) []byte { return fmt.Appendf(nil, "%03d", i) }
		for range rng.IntN(30) {
			from, to := rng.IntN(100), rng.IntN(100)
			was := fmt.Sprint(s)
			next := s.with(key(from), key(to))
			if fmt.Sprint(s) != was {
				t.Fatal("the list before was changed")
			}
			s = next
			for i := from; i < to; i++ {
				in[i] = true
			}
		}
		for i := range 100 {
			if got := s.covering(key(i)); (got != nil) != in[i] {
				t.Fatalf("%d in %q: %v, want %v", i, s, got != nil, in[i])
			}
		}
		for i := 1; i < len(s); i++ {
			if string(s[i-1].to) >= string(s[i].from) {
				t.Fatalf("%q touches %q", s[i-1], s[i])
			}
		}
	}
}
