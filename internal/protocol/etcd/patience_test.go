package etcd

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/quorate/quorate/internal/kv"
)

// A client that does not fetch its answer holds a part of what all large answers have together for a while, and not for ever, whatever it is
// that it does not give: windows, or room in its socket.
func TestRange_WhoDoesNotFetchAnAnswerLosesIt(t *testing.T) {
	answers := kv.NewBudget(20 << 20)
	r := newRig(t, Config{Answers: answers, SendTimeout: 200 * time.Millisecond})
	for i := range 16 {
		r.put(fmt.Sprintf("large/%d", i), strings.Repeat("x", 1<<20))
	}
	request, err := proto.Marshal(&pb.RangeRequest{Key: []byte("large/"), RangeEnd: []byte("large0")})
	if err != nil {
		t.Fatal(err)
	}
	body := `{"key": "bGFyZ2Uv", "range_end": "bGFyZ2Uw"}`
	grpc := func(stream, conn uint32) func(nc net.Conn) {
		return func(nc net.Conn) {
			frame := func(kind, flags byte, id uint32, payload []byte) {
				head := []byte{0, byte(len(payload) >> 8), byte(len(payload)), kind, flags}
				_, _ = nc.Write(append(binary.BigEndian.AppendUint32(head, id), payload...))
			}
			var fields []byte
			for _, s := range []string{":method", "POST", ":scheme", "http", ":path", pb.KV_Range_FullMethodName, "content-type", "application/grpc"} {
				if s[0] == ':' || s[0] == 'c' {
					fields = append(fields, 0)
				}
				fields = append(append(fields, byte(len(s))), s...)
			}
			_, _ = io.WriteString(nc, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
			// The settings with the window of a call, the window of the connection, the header, and the request.
			frame(4, 0, 0, binary.BigEndian.AppendUint32([]byte{0, 4}, stream))
			if conn > 0 {
				frame(8, 0, 0, binary.BigEndian.AppendUint32(nil, conn))
			}
			frame(1, 4, 1, fields)
			frame(0, 1, 1, append([]byte{0, 0, 0, 0, byte(len(request))}, request...))
		}
	}
	for name, ask := range map[string]func(nc net.Conn){
		"no window of the call":       grpc(100, 1<<30),
		"no window of the connection": grpc(1<<30, 0),
		"nothing is read":             grpc(1<<30, 1<<30),
		"nothing is read of JSON": func(nc net.Conn) {
			_, _ = fmt.Fprintf(nc, "POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		},
	} {
		nc, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		ask(nc)
		await(t, name+": the answer counts", func() bool { return answers.Used() >= 16<<20 })
		// It is counted in several places, one after the other, and taken apart in between, which takes its time on a busy machine.
		held, zeros := time.Now(), 0
		await(t, name+": the answer is let go of", func() bool {
			if zeros++; answers.Used() != 0 {
				held, zeros = time.Now(), 0
			}
			return zeros > 1000
		})
		if took := held.Sub(began); took < 150*time.Millisecond {
			t.Errorf("%s: let go of after %v", name, took)
		}
		_ = nc.Close()
	}
}

// A client that takes its large answer slowly may go on, unless others want the room.
func TestRange_SlowClientsMakeWayWhileRoomIsScarce(t *testing.T) {
	for _, room := range []int64{20 << 20, 100 << 20} {
		answers := kv.NewBudget(room)
		r := newRig(t, Config{Answers: answers, SendTimeout: 300 * time.Millisecond})
		for i := range 16 {
			r.put(fmt.Sprintf("large/%d", i), strings.Repeat("x", 1<<20))
		}
		body := `{"key": "bGFyZ2Uv", "range_end": "bGFyZ2Uw"}`
		nc, rd := r.speak(fmt.Sprintf("POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		if err := nc.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
			t.Fatal(err)
		}
		// It takes about 2 s for all that has to go over the wire.
		n := 0
		for buf := make([]byte, 256<<10); ; time.Sleep(25 * time.Millisecond) {
			m, err := io.ReadFull(rd, buf)
			if n += m; err != nil {
				break
			}
		}
		if whole := n > 16<<20; whole != (room > 20<<20) {
			t.Errorf("with %d bytes of room the client was sent %d bytes", room, n)
		}
		await(t, "the answer is let go of", func() bool { return answers.Used() == 0 })
	}
}
