package storage

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// contents renders a view; deleted rows have no value.
func contents(v memView, from string) string {
	var b strings.Builder
	for it := v.iter([]byte(from)); it.row != nil; it.next() {
		if it.row.deleted() {
			fmt.Fprintf(&b, "%q ", it.key())
			continue
		}
		fmt.Fprintf(&b, "%q=%q ", it.key(), it.value())
	}
	return b.String()
}

// wanted renders a model: a value that begins with "-" is a deletion.
func wanted(m map[string]string, from string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		switch {
		case k < from:
		case strings.HasPrefix(m[k], "-"):
			fmt.Fprintf(&b, "%q ", k)
		default:
			fmt.Fprintf(&b, "%q=%q ", k, m[k])
		}
	}
	return b.String()
}

// memKeys are generators of keys, each hard on another part of the tree.
var memKeys = map[string]func(*rand.Rand, int) string{
	"spread": func(r *rand.Rand, _ int) string { return fmt.Sprintf("%08x", r.Uint32()) },
	"few":    func(r *rand.Rand, _ int) string { return fmt.Sprintf("place:%d", r.IntN(300)) },
	// Rows of several shards, of which the key says more only after what all have in common.
	"shards": func(r *rand.Rand, _ int) string {
		return fmt.Sprintf("s%03d\x00\x00\x00\x00\x01k%03d", r.IntN(5), r.IntN(400))
	},
	"rising":  func(_ *rand.Rand, i int) string { return fmt.Sprintf("log/%09d", i) },
	"falling": func(_ *rand.Rand, i int) string { return fmt.Sprintf("log/%09d", 1<<29-i) },
	// Keys that begin with each other, and zeros, which marks cannot tell from the end of a key.
	"nested": func(r *rand.Rand, _ int) string {
		return strings.Repeat("\x00", r.IntN(30)) + strings.Repeat("a", r.IntN(30))
	},
	// Keys of one length that differ behind their marks only.
	"tails": func(r *rand.Rand, _ int) string {
		return fmt.Sprintf("%cmmmmmmmmmmmmmmm%c", 'a'+r.IntN(5), '0'+r.IntN(10))
	},
	"deep": func(r *rand.Rand, _ int) string {
		return strings.Repeat("p", 8*r.IntN(40)) + fmt.Sprintf("%03d", r.IntN(50))
	},
	"bytes": func(r *rand.Rand, _ int) string {
		b := make([]byte, r.IntN(4))
		for i := range b {
			b[i] = "\x00\x01\xfe\xff"[r.IntN(4)]
		}
		return string(b)
	},
}

// TestMemTable_IsAnOrderedMapWithViews compares it with a map, and old views with what the map was then.
func TestMemTable_IsAnOrderedMapWithViews(t *testing.T) {
	for name, key := range memKeys {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(7, uint64(len(name))))
			tab, model := &memTable{}, map[string]string{}
			type moment struct {
				v    memView
				want map[string]string
			}
			var moments []moment
			for i := range 3000 {
				k := key(rng, i)
				if rng.IntN(5) == 0 {
					tab.put([]byte(k), nil, true)
					model[k] = "-"
				} else {
					v := strings.Repeat("v", rng.IntN(20)) + fmt.Sprint(i)
					tab.put([]byte(k), []byte(v), false)
					model[k] = v
				}
				if rng.IntN(300) == 0 {
					moments = append(moments, moment{tab.view(), maps.Clone(model)})
				}
			}
			moments = append(moments, moment{tab.own(), model})
			if tab.rows != len(model) {
				t.Errorf("%d rows, want %d", tab.rows, len(model))
			}
			for i, m := range moments {
				for range 5 {
					from := key(rng, rng.IntN(3000))
					if got, want := contents(m.v, from), wanted(m.want, from); got != want {
						t.Fatalf("view %d from %q:\n got %.500s\nwant %.500s", i, from, got, want)
					}
				}
				if got, want := contents(m.v, ""), wanted(m.want, ""); got != want {
					t.Fatalf("view %d:\n got %.500s\nwant %.500s", i, got, want)
				}
				for range 300 {
					k := key(rng, rng.IntN(3500))
					want, there := m.want[k]
					r := m.v.find([]byte(k))
					switch {
					case (r != nil) != there:
						t.Fatalf("view %d: find %q: %v, want %v", i, k, r != nil, there)
					case there && r.deleted() != strings.HasPrefix(want, "-"):
						t.Fatalf("view %d: find %q: deleted %v, want %q", i, k, r.deleted(), want)
					case there && !r.deleted() && string(rowValue(m.v.chunks, r)) != want:
						t.Fatalf("view %d: find %q: %q, want %q", i, k, rowValue(m.v.chunks, r), want)
					}
				}
			}
		})
	}
}

func TestMemTable_Empty(t *testing.T) {
	tab := &memTable{}
	if got := contents(tab.view(), "a"); got != "" || tab.own().find([]byte("a")) != nil {
		t.Errorf("got %q", got)
	}
}

// Rows end where their chunk does, or nearly, and are larger than chunks; all of their bytes count, and so do those of ranges.
func TestMemTable_RowsAtTheEndsOfChunks(t *testing.T) {
	for left := range 8 {
		tab, want, bytes := &memTable{}, map[string]string{}, 0
		for i, n := range []int{memChunkMin - 8 - left, 8, 8, 3 * memChunkMin, 5, 50 * memChunkMin, 9} {
			k := fmt.Sprint("k", i)
			want[k] = strings.Repeat(fmt.Sprint(i), n-len(k))
			tab.put([]byte(k), []byte(want[k]), false)
			bytes += n
		}
		if got := contents(tab.own(), ""); got != wanted(want, "") {
			t.Errorf("%d bytes before the end: got %.300s", left, got)
		}
		if tab.bytes != bytes {
			t.Errorf("%d bytes before the end: %d bytes count, want %d", left, tab.bytes, bytes)
		}
		if tab.deleteRange([]byte("x"), []byte("yyy")); tab.bytes != bytes+4 {
			t.Errorf("a range counts %d bytes, want 4", tab.bytes-bytes)
		}
	}
}

// A row that is written again makes its leaf split, if that is full; it is there once all the same, wherever in the leaf it is.
func TestMemTable_RowsOfFullLeavesAgain(t *testing.T) {
	for at := range memFanout {
		tab, want := &memTable{}, map[string]string{}
		put := func(i int, value string) {
			k := fmt.Sprintf("%03d", i)
			tab.put([]byte(k), []byte(value), false)
			want[k] = value
		}
		// The first leaf ends before its last row, which is the first of the second one.
		for i := range memFanout - 1 + memFanout {
			put(i, "old")
		}
		if leaf := tab.root.kids[1]; len(tab.root.kids) != 2 || leaf.n != memFanout {
			t.Fatalf("%d leaves, of which the second has %d rows", len(tab.root.kids), leaf.n)
		}
		put(memFanout-1+at, "new")
		if got := contents(tab.own(), ""); got != wanted(want, "") || tab.rows != len(want) {
			t.Errorf("row %d of a leaf: %d rows, want %d: %s", at, tab.rows, len(want), got)
		}
	}
}

// Nodes are copied for a view once, not with each row.
func TestMemTable_CopiesNodesOnce(t *testing.T) {
	tab := &memTable{}
	tab.put([]byte("k"), nil, false)
	before := tab.root
	tab.view()
	tab.put([]byte("k"), nil, false)
	copied := tab.root
	tab.put([]byte("k"), nil, false)
	if copied == before || tab.root != copied {
		t.Errorf("copied for the first row: %v, for the second: %v", copied != before, tab.root != copied)
	}
}

// Rows that come in order fill the leaves, and a row that comes again takes no room in the tree.
func TestMemTable_StaysSmall(t *testing.T) {
	tab := &memTable{}
	for i := range 64 * 64 {
		tab.put(fmt.Appendf(nil, "%08d", i), nil, false)
	}
	leaves := 0
	var count func(n *memNode)
	count = func(n *memNode) {
		if n.kids == nil {
			leaves++
		}
		for _, k := range n.kids {
			count(k)
		}
	}
	if count(tab.root); leaves > 64*64/(memFanout-2)+2 {
		t.Errorf("%d leaves", leaves)
	}
	before := leaves
	for range 10_000 {
		tab.put([]byte("00000007"), []byte("again"), false)
	}
	leaves = 0
	if count(tab.root); leaves != before || tab.rows != 64*64 {
		t.Errorf("%d leaves, before %d; %d rows", leaves, before, tab.rows)
	}
}

func FuzzMemTable(f *testing.F) {
	f.Add([]byte("aabbccabc"), uint8(2))
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		tab, model := &memTable{}, map[string]string{}
		for n := int(size%12) + 1; len(data) > 0; {
			k := data[:min(n, len(data))]
			data = data[len(k):]
			k = bytes.TrimRight(k, "x")
			tab.put(k, k, false)
			model[string(k)] = string(k)
		}
		var b strings.Builder
		for _, k := range slices.Sorted(maps.Keys(model)) {
			fmt.Fprintf(&b, "%q=%q ", k, k)
		}
		if got := contents(tab.view(), ""); got != b.String() {
			t.Errorf("got %s\nwant %s", got, b.String())
		}
	})
}

// BenchmarkMemTable writes batches of 100 rows, with keys as those of a module's; the view between them is what a reader takes.
func BenchmarkMemTable(b *testing.B) {
	for _, shards := range []int{1, 16} {
		for _, keys := range []int{10_000, 1_000_000} {
			for _, views := range []bool{false, true} {
				b.Run(fmt.Sprintf("shards=%d/keys=%d/views=%v", shards, keys, views), func(b *testing.B) {
					rng := rand.New(rand.NewPCG(1, 2))
					value := make([]byte, 128)
					tab := &memTable{}
					var key []byte
					for i := range b.N {
						k := rng.IntN(keys)
						key = append(key[:0], 2, 0, 0, 0, byte(k%shards), 0, 0, 0, 1, 1)
						key = fmt.Appendf(key, "k%c%c%04x:%d", k*7, k*13, uint16(k*40503), k)
						tab.put(key, value, false)
						if views && i%100 == 0 {
							tab.view()
						}
						if tab.bytes > 64<<20 || tab.rows > 100_000 {
							tab = &memTable{}
						}
					}
				})
			}
		}
	}
}
