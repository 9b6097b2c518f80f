package kafka

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// A small request that names the same thing again and again gets one answer about it.
func TestAnswer_NamesTheSameOnce(t *testing.T) {
	const times = 1000
	b := newBench(t, 1, Config{})
	w := b.dial()
	w.createTopic("t", 3)

	meta := kmsg.NewPtrMetadataRequest()
	for i := range times {
		x := kmsg.NewMetadataRequestTopic()
		x.Topic = p([]string{"t", "none"}[i%2])
		meta.Topics = append(meta.Topics, x)
	}
	r := ask[*kmsg.MetadataResponse](w, meta, 12)
	if len(r.Topics) != 2 || *r.Topics[0].Topic != "t" || len(r.Topics[0].Partitions) != 3 || *r.Topics[1].Topic != "none" {
		t.Fatalf("metadata: %d topics, %+v", len(r.Topics), r.Topics[0])
	}
	for i := range meta.Topics {
		meta.Topics[i].Topic, meta.Topics[i].TopicID = nil, r.Topics[0].TopicID
	}
	if r := ask[*kmsg.MetadataResponse](w, meta, 12); len(r.Topics) != 1 || r.Topics[0].ErrorCode != 0 {
		t.Errorf("metadata by id: %d topics", len(r.Topics))
	}

	groups := kmsg.NewPtrDescribeGroupsRequest()
	for range times {
		groups.Groups = append(groups.Groups, "g")
	}
	if r := ask[*kmsg.DescribeGroupsResponse](w, groups, 5); len(r.Groups) != 1 {
		t.Errorf("groups: %d", len(r.Groups))
	}

	configs := kmsg.NewPtrDescribeConfigsRequest()
	for i := range times {
		x := kmsg.NewDescribeConfigsRequestResource()
		x.ResourceType, x.ResourceName = kmsg.ConfigResourceTypeTopic, "t"
		x.ConfigNames = []string{[]string{"retention.ms", "retention.bytes"}[i%2]}
		configs.Resources = append(configs.Resources, x)
	}
	c := ask[*kmsg.DescribeConfigsResponse](w, configs, 4).Resources
	if len(c) != 1 || len(c[0].Configs) != 2 {
		t.Errorf("configs: %d resources, %+v", len(c), c[0])
	}
	configs.Resources[times-1].ConfigNames = nil
	if c := ask[*kmsg.DescribeConfigsResponse](w, configs, 4).Resources; len(c) != 1 || len(c[0].Configs) <= 2 {
		t.Errorf("configs, once all of them: %d resources, %+v", len(c), c[0])
	}

	// In Kafka (ConfigHelper), no names are all of them too.
	configs.Resources[times-1].ConfigNames = []string{}
	if c := ask[*kmsg.DescribeConfigsResponse](w, configs, 4).Resources; len(c) != 1 || len(c[0].Configs) <= 2 {
		t.Errorf("configs, once of no name: %d resources, %+v", len(c), c[0])
	}

	offsets := kmsg.NewPtrOffsetFetchRequest()
	for i := range int32(times) {
		g := kmsg.NewOffsetFetchRequestGroup()
		x := kmsg.NewOffsetFetchRequestGroupTopic()
		g.Group, x.Topic, x.Partitions = "g", "t", []int32{i % 2, 0}
		g.Topics = append(g.Topics, x)
		offsets.Groups = append(offsets.Groups, g)
	}
	o := ask[*kmsg.OffsetFetchResponse](w, offsets, 8).Groups
	if len(o) != 1 || len(o[0].Topics) != 1 || len(o[0].Topics[0].Partitions) != 2 {
		t.Errorf("offsets: %d groups, %+v", len(o), o[0])
	}
}

func TestOnce_KeepsTheOrder(t *testing.T) {
	got := once([]int{3, 1, 3, 2, 1, 4}, func(v *int) int { return *v })
	if want := []int{3, 1, 2, 4}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// No client takes an answer without a bound, and a length must fit its four bytes.
func TestAnswer_HasABound(t *testing.T) {
	b := newBench(t, 1, Config{answerBytesMax: 2000})
	w := b.dial()
	w.createTopic("t", 100)
	join := joinReq("g", "")
	join.Protocols[0].Metadata = make([]byte, 1500)
	join.SetVersion(3)
	if r := w.receive(join, w.send(join)).(*kmsg.JoinGroupResponse); r.ErrorCode != 0 {
		t.Fatalf("join: %+v", r)
	}
	for i := range 5 {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group = fmt.Sprint(strings.Repeat("g", 450), i)
		x := kmsg.NewOffsetCommitRequestTopic()
		x.Topic = "t"
		for i := range int32(5) {
			y := kmsg.NewOffsetCommitRequestTopicPartition()
			y.Partition, y.Metadata = i, p(strings.Repeat("m", 450))
			x.Partitions = append(x.Partitions, y)
		}
		req.Topics = append(req.Topics, x)
		if r := ask[*kmsg.OffsetCommitResponse](w, req, 8); r.Topics[0].Partitions[0].ErrorCode != 0 {
			t.Fatalf("commit: %+v", r)
		}
	}
	describe := kmsg.NewPtrDescribeGroupsRequest()
	describe.Groups = []string{"g"}
	describe.SetVersion(5)
	if r := w.receive(describe, w.send(describe)).(*kmsg.DescribeGroupsResponse); len(r.Groups[0].Members) != 1 {
		t.Errorf("one group fits: %+v", r)
	}
	join.Group = "h"
	w.receive(join, w.send(join))
	describe.Groups = []string{"g", "h"}
	list := kmsg.NewPtrListGroupsRequest()
	list.SetVersion(4)
	offsets := kmsg.NewPtrOffsetFetchRequest()
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = strings.Repeat("g", 450) + "0"
	offsets.Groups = append(offsets.Groups, g)
	offsets.SetVersion(8)
	meta := kmsg.NewPtrMetadataRequest()
	meta.SetVersion(12)
	for _, req := range []kmsg.Request{describe, list, offsets, meta} {
		x := b.dial()
		x.send(req)
		if !x.closed() {
			t.Errorf("%T: the connection was not closed", req)
		}
	}
}

// Kafka has no time in which an answer must be taken. One that takes long because the line is slow arrives; one that nobody takes does not stay.
func TestAnswer_TimeGoesOnWithWhatIsTaken(t *testing.T) {
	const size = 5*answerStretch + 1
	for _, c := range []struct {
		taken int
		every time.Duration
		whole bool
	}{
		{answerStretch / 2, 10 * time.Second, true},
		{answerStretch / 2, 16 * time.Second, false},
		{size, 29 * time.Second, true},
		{size, 31 * time.Second, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Config{}, nil, slog.New(slog.DiscardHandler), nil)
			defer s.Close() //nolint:errcheck // it has no connections
			near, far := net.Pipe()
			x := newConn(s, near)
			defer x.endWork()
			n := make(chan int)
			go func() {
				all := 0
				for buf := make([]byte, c.taken); ; {
					time.Sleep(c.every)
					m, err := io.ReadFull(far, buf)
					if all += m; err != nil {
						n <- all
						return
					}
				}
			}()
			err := x.write(make([]byte, size))
			if err == nil {
				err = x.flush()
			}
			_ = near.Close()
			if got := <-n; (err == nil) != c.whole || c.whole && got != size {
				t.Errorf("%d bytes every %v: %d of %d were taken, %v", c.taken, c.every, got, size, err)
			}
		})
	}
}
