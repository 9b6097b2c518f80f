package kafka

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// series returns the values of what is counted, by name and labels. Of a histogram it is how often something was observed.
func (b *bench) series() map[string]float64 {
	b.t.Helper()
	all, err := b.reg.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			switch {
			case m.GetHistogram() != nil:
				out[name] = float64(m.GetHistogram().GetSampleCount())
			case m.GetGauge() != nil:
				out[name] = m.GetGauge().GetValue()
			default:
				out[name] = m.GetCounter().GetValue()
			}
		}
	}
	return out
}

// refusals is how many connections were closed for what came.
func (b *bench) refusals() (n float64) {
	for name, v := range b.series() {
		if strings.HasPrefix(name, "quorate_kafka_connections_refused_total") {
			n += v
		}
	}
	return n
}

// What is counted by labels is there before it happens, and no label is ever added: rates of what begins with its first event miss it.
func TestMetrics_AreThereFromTheStart(t *testing.T) {
	b := newBench(t, 1, Config{FrameBytesMax: 1 << 20, RequestBytesMax: 4 << 20})
	before := b.series()
	for i := range b.s.table {
		name := b.s.table[i].name
		for _, want := range []string{"requests_total " + name + " ok", "requests_total " + name + " error", "requests_total " + name + " refused", "request_seconds " + name} {
			if v, ok := before["quorate_kafka_"+want]; !ok || v != 0 {
				t.Errorf("%s: %v, %v", want, v, ok)
			}
		}
	}
	for _, reason := range []string{"too_many", "timeout", "too_large", "unsupported", "overloaded", "malformed"} {
		if v, ok := before["quorate_kafka_connections_refused_total "+reason]; !ok || v != 0 {
			t.Errorf("refused for %s: %v, %v", reason, v, ok)
		}
	}
	w := b.dial()
	w.createTopic("t", 1)
	w.produce("t", 0, records(0, 1))
	w.fetch("t", 0, 0)
	// Not served, in a version that is not, malformed, and too large. Each is counted before the next.
	for i, in := range [][]byte{framed(9999, 0, nil), framed(0, 2, nil), framed(0, 3, be(int16(-1), int16(1), int32(1), int32(1<<31-1))), be(int32(2 << 20))} {
		c := b.dial()
		_, _ = c.nc.Write(in)
		if !c.closed() {
			t.Error("the connection was not closed")
		}
		// When it has been closed.
		for end := time.Now().Add(10 * time.Second); b.refusals() <= float64(i) && time.Now().Before(end); {
			runtime.Gosched()
		}
	}
	ask[*kmsg.MetadataResponse](w, kmsg.NewPtrMetadataRequest(), 12)
	after := b.series()
	for name := range after {
		if _, ok := before[name]; !ok {
			t.Errorf("%s is new", name)
		}
	}
	for name, want := range map[string]float64{
		"requests_total Produce ok": 1, "requests_total Produce error": 0, "requests_total Produce refused": 2, "request_seconds Produce": 1,
		"requests_total Fetch ok": 1, "request_seconds Fetch": 1, "requests_total CreateTopics ok": 1, "requests_total other refused": 1,
		"connections_refused_total unsupported": 2, "connections_refused_total malformed": 1, "connections_refused_total too_large": 1,
	} {
		if got := after["quorate_kafka_"+name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if t.Failed() {
		var all []string
		for name, v := range after {
			all = append(all, fmt.Sprint(name, " ", v))
		}
		slices.Sort(all)
		t.Log(all)
	}
}
