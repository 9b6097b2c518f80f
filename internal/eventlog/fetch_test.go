package eventlog

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// The bound of a request is that of all its partitions together, and one batch of them may be longer.
func TestFetch_OfSeveralPartitions(t *testing.T) {
	w := newWorld(t)
	size := int32(len(batchOf(1)))
	for _, part := range []int32{0, 0, 1, 1} {
		w.append(part, batchOf(1))
	}
	for _, c := range []struct {
		max   int32
		first bool
		// offset of the first partition, and the most bytes of each.
		offset int64
		each   int32
		// want has the number of batches of each partition, with a plus if there are more.
		want string
	}{
		{4 * size, false, 0, 4 * size, "2 2"}, {3 * size, true, 0, 4 * size, "2 1+"}, {size, true, 0, 4 * size, "1+ 0+"},
		{2*size - 1, true, 0, 4 * size, "1+ 0+"}, {4 * size, true, 0, size, "1+ 1+"}, {1, true, 0, 1, "1+ 0+"}, {1, false, 0, 1, "0+ 0+"},
		{0, false, 0, 0, "0+ 0+"}, {1, true, 2, 1, "0 1+"}, {1, false, 2, 1, "0 0+"}, {4 * size, true, 1, 4 * size, "1 2"},
	} {
		b, err := w.ask(QueryFetch(c.max, c.first, []Fetch{{Topic: topicA, Offset: c.offset, BytesMax: c.each}, {Topic: topicA, Partition: 1, BytesMax: c.each}}))
		if err != nil {
			t.Fatal(err)
		}
		list, err := DecodeFetched(b)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range list {
			s := fmt.Sprint(len(f.Batches) / int(size))
			if f.More {
				s += "+"
			}
			got = append(got, s)
			if f.Err != nil || f.Start != 0 || f.End != 2 {
				t.Errorf("%+v: %+v", c, f)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// Whatever the bound, a consumer of the change log gets each change once, as it was.
func TestChanges_InPieces(t *testing.T) {
	c := shardtest.New(t, shardtest.Options{}, Module{}, changer{})
	w := &world{t: t, c: c}
	var all [][]byte
	total := int32(0)
	for i, v := range []string{"a", "bb", "del", "dddd", strings.Repeat("e", 100)} {
		c.Advance(time.Second)
		if r := c.Submit(context.Background(), shard.Route{Shard: 1}, shard.Command{Module: shard.ModuleDatatypes, Data: []byte(v)}).Wait(context.Background()); r.Err != nil {
			t.Fatal(r.Err)
		}
		one := newBatchBuilder(0)
		one.add(c.Now().UnixMilli(), []byte("k"), false, []byte(v), v == "del", []Header{
			{"op", []byte("set")}, {"revision", fmt.Append(nil, c.Machine(1).Revision())}, {"field", []byte("f")},
		})
		all = append(all, one.finish(int64(i), -1))
		total += int32(len(all[i]))
	}
	for bytesMax := int32(1); bytesMax <= total; bytesMax++ {
		for at := int64(0); at < int64(len(all)); {
			b, err := w.ask(QueryFetch(bytesMax, true, []Fetch{{Changes: true, Offset: at, BytesMax: bytesMax}}))
			if err != nil {
				t.Fatal(err)
			}
			l, err := DecodeFetched(b)
			if err != nil || l[0].Err != nil {
				t.Fatal(err, l)
			}
			f := l[0]
			h, _, err := checkAll(t, f.Batches, Topic{})
			if err != nil || h.BaseOffset != at || h.Records > 1 && int32(len(f.Batches)) > bytesMax {
				t.Fatalf("%d bytes at %d: %d bytes %+v %v", bytesMax, at, len(f.Batches), h, err)
			}
			if h.Records == 1 && !bytes.Equal(f.Batches, all[at]) {
				t.Fatalf("%d bytes at %d: got %q, want %q", bytesMax, at, f.Batches, all[at])
			}
			if at += int64(h.Records); f.More != (at < f.End) {
				t.Fatalf("%d bytes, then %d of %d: more %v", bytesMax, at, f.End, f.More)
			}
		}
	}
	b, err := w.ask(QueryFetch(int32(len(all[0]))-1, false, []Fetch{{Changes: true, BytesMax: total}}))
	if err != nil {
		t.Fatal(err)
	}
	if l, err := DecodeFetched(b); err != nil || len(l[0].Batches) > 0 || !l[0].More {
		t.Errorf("less than the first takes: %+v %v", l, err)
	}
}
