package kafka

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
)

// conn is one connection. run reads; a second goroutine, which run waits for, answers in order.
type conn struct {
	s  *Server
	nc net.Conn
	// polls ends when the client stops sending: nobody waits for what a poll might find. work goes on until what was
	// read is answered.
	polls, work context.Context
	endPolls    context.CancelFunc
	endWork     context.CancelFunc
	// queue holds the requests that are read and not answered.
	queue chan *item
	// waiting counts the queued requests whose work has not begun. A produce request begins when it is read only if
	// nothing read before it is still to begin, so that requests take effect in order.
	waiting atomic.Int32
	// small are the requests that are smaller than what budgets count in, and not answered.
	small small
	// host is the client's address without its port.
	host string
	// What follows belongs to the goroutine that answers. out has answers that were not sent yet.
	out *bufio.Writer
	// held is what the request being answered took from the budget of fetches.
	held *grant
}

// item is a request on its way through a connection.
type item struct {
	h   header
	api *api
	// m counts requests of the API; nil if that is not served.
	m *apiMetrics
	// came is when it had been read.
	came time.Time
	// body is what was read and checked. It is decoded when the request's turn comes: an array of small elements takes many
	// times its bytes then, and as many requests may wait behind a long poll as a connection may have in flight.
	body []byte
	// release gives back the memory that is kept for the request.
	release func()
	// begun is the work of a produce request that began when it was read.
	begun *produceWork
	// answer is set for requests that are answered without their handler.
	answer kmsg.Response
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, nc: nc, queue: make(chan *item, s.cfg.InFlight), out: bufio.NewWriterSize(nc, 32<<10)}
	c.work, c.endWork = context.WithCancel(s.ctx)
	c.polls, c.endPolls = context.WithCancel(c.work)
	c.host, _, _ = net.SplitHostPort(nc.RemoteAddr().String())
	return c
}

func (c *conn) run() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.answerAll()
	}()
	err := c.read()
	c.endPolls()
	close(c.queue)
	<-done
	c.endWork()
	_ = c.nc.Close()
	c.report(err)
}

// report logs why a connection ended, if someone should know.
func (c *conn) report(err error) {
	log := c.s.log.With("client", c.nc.RemoteAddr().String())
	switch {
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF):
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.s.m.refused.WithLabelValues("timeout").Inc()
		log.Debug("connection closed: no request arrived in time")
	case errs.KindOf(err) == errs.Internal:
		log.Debug("connection broke", "error", err.Error())
	default:
		c.s.m.refused.WithLabelValues(reasonLabel(err)).Inc()
		log.LogAttrs(context.Background(), slog.LevelWarn, "connection closed", slog.String("error", err.Error()))
	}
}

// refusedReasons are why connections are closed.
var refusedReasons = []string{"too_many", "timeout", "too_large", "unsupported", "overloaded", "malformed"}

func reasonLabel(err error) string {
	switch errs.KindOf(err) {
	case errs.TooLarge:
		return "too_large"
	case errs.Unsupported:
		return "unsupported"
	case errs.Overloaded:
		return "overloaded"
	}
	return "malformed"
}

// read takes requests off the connection until it ends.
func (c *conn) read() error {
	r := bufio.NewReaderSize(c.nc, 16<<10)
	for {
		if err := c.nc.SetReadDeadline(time.Now().Add(c.s.cfg.IdleTimeout)); err != nil {
			return err
		}
		if _, err := r.Peek(1); err != nil {
			return err
		}
		deadline := time.Now().Add(c.s.cfg.FrameTimeout)
		if err := c.nc.SetReadDeadline(deadline); err != nil {
			return err
		}
		it := &item{release: func() {}}
		frame, err := readFrame(r, c.s.cfg.FrameBytesMax, func(n int) error {
			release, err := c.room(n, deadline)
			if err == nil {
				it.release = release
			}
			return err
		}, func() error {
			deadline = deadline.Add(c.s.cfg.FrameTimeout)
			return c.nc.SetReadDeadline(deadline)
		})
		if err == nil {
			it.came = time.Now()
			c.s.m.bytesIn.Add(float64(len(frame) + 4))
			err = c.parse(it, frame)
		}
		if err != nil {
			it.release()
			return err
		}
		if err := c.begin(it); err != nil {
			it.release()
			return err
		}
		c.queue <- it
	}
}

// room waits for the memory that a request takes.
func (c *conn) room(n int, deadline time.Time) (release func(), err error) {
	units := n
	if n <= frameStep {
		if units = c.small.add(n); units == 0 {
			return func() { c.small.remove(n) }, nil
		}
	}
	ctx, cancel := context.WithDeadline(c.work, deadline)
	defer cancel()
	release, err = c.s.frames.take(ctx, units)
	if n > frameStep {
		return release, err
	}
	if err != nil {
		c.small.remove(n)
		return nil, err
	}
	c.small.hold(release)
	return func() { c.small.remove(n) }, nil
}

// small counts small requests of a connection. The first frameStep bytes of them are free, so that whoever asks for little never waits for those
// who ask for much; the rest is taken from the budget, a unit at a time.
type small struct {
	mu    sync.Mutex
	bytes int
	// units give back what was taken.
	units []func()
}

// add counts a request, and returns how many bytes are to be taken from the budget for it.
func (s *small) add(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes += n
	return max((s.needed()-len(s.units))*budgetUnit, 0)
}

// needed returns how many units are to be held.
func (s *small) needed() int { return max(s.bytes-frameStep+budgetUnit-1, 0) / budgetUnit }

// hold keeps what was taken as long as there are so many requests.
func (s *small) hold(unit func()) {
	s.mu.Lock()
	s.units = append(s.units, unit)
	s.mu.Unlock()
	s.remove(0)
}

// remove ends to count a request.
func (s *small) remove(n int) {
	s.mu.Lock()
	s.bytes -= n
	left := min(s.needed(), len(s.units))
	give := s.units[left:]
	s.units = s.units[:left:left]
	s.mu.Unlock()
	for _, g := range give {
		g()
	}
}

// flexible says whether the header of a request ends with tags.
func (s *Server) flexible(key, version int16) bool {
	a := s.api(key)
	return a != nil && version >= a.shape.flexible && version <= a.max
}

// parse reads a request's header and checks that the rest can be decoded.
func (c *conn) parse(it *item, frame []byte) error {
	h, body, err := readHeader(frame, c.s.flexible)
	if err != nil {
		return err
	}
	it.h, it.api, it.m = h, c.s.api(h.key), c.s.m.apis[h.key]
	if it.api == nil || h.version < it.api.min || h.version > it.api.max {
		if it.answer = c.unsupported(h); it.answer == nil {
			return c.refuse(it, errs.New(errs.Unsupported, "API %d (%s) version %d is not served", h.key, kmsg.NameForKey(h.key), h.version))
		}
		return nil
	}
	if err := it.api.shape.check(h.version, body); err != nil {
		return c.refuse(it, errs.Wrap(errs.Invalid, err, "%s version %d", it.api.name, h.version))
	}
	it.body = body
	return nil
}

// decode decodes a request that was parsed.
func (c *conn) decode(it *item) (kmsg.Request, error) {
	req := kmsg.RequestForKey(it.h.key)
	req.SetVersion(it.h.version)
	if err := req.ReadFrom(it.body); err != nil {
		return nil, c.refuse(it, errs.Wrap(errs.Invalid, err, "%s version %d", it.api.name, it.h.version))
	}
	return req, nil
}

// refuse counts a request for which the connection is closed.
func (c *conn) refuse(it *item, err error) error {
	c.refused(it).Inc()
	return err
}

// refused counts requests of an API that were not served.
func (c *conn) refused(it *item) prometheus.Counter {
	if it.m == nil {
		return c.s.m.other
	}
	return it.m.refused
}

// unsupported makes the answer to a request that is not served. Kafka has one where a client cannot know better:
// ApiVersions of any version is answered in version 0 (KIP-511). Other APIs that are not served, in a version whose answer
// has room for an error, get that; the rest is nil, and the connection is closed.
func (c *conn) unsupported(h header) kmsg.Response {
	if h.key == 18 {
		r := kmsg.NewPtrApiVersionsResponse()
		r.ErrorCode = codeUnsupportedVersion
		r.ApiKeys = []kmsg.ApiVersionsResponseApiKey{{ApiKey: 18, MinVersion: 0, MaxVersion: c.s.api(18).max}}
		return r
	}
	r := kmsg.ResponseForKey(h.key)
	if r == nil || c.s.api(h.key) != nil || h.version < 0 || h.version > r.MaxVersion() {
		return nil
	}
	code := reflect.ValueOf(r).Elem().FieldByName("ErrorCode")
	if !code.IsValid() || code.Kind() != reflect.Int16 {
		return nil
	}
	if d, ok := r.(interface{ Default() }); ok {
		d.Default()
	}
	r.SetVersion(h.version)
	// In some versions the field is not sent, and the answer would say that all is well.
	code.SetInt(int64(codeNone))
	well := r.AppendTo(nil)
	code.SetInt(int64(codeUnsupportedVersion))
	if bytes.Equal(r.AppendTo(nil), well) {
		return nil
	}
	return r
}

// begin starts the work of a produce request if nothing read before it is still to begin.
func (c *conn) begin(it *item) error {
	if it.answer != nil || it.h.key != int16(kmsg.Produce) || c.waiting.Load() > 0 {
		c.waiting.Add(1)
		return nil
	}
	req, err := c.decode(it)
	if err == nil {
		it.begun = c.s.beginProduce(c.work, req.(*kmsg.ProduceRequest))
	}
	return err
}

// answerAll answers requests in the order they were read.
func (c *conn) answerAll() {
	broken := false
	for it := range c.queue {
		if !broken {
			if err := c.answer(it); err != nil {
				broken = true
				c.report(err)
				// The reader notices and ends; until then the queue is emptied without work.
				c.endPolls()
				_ = c.nc.Close()
			}
		}
		if it.begun == nil {
			c.waiting.Add(-1)
		}
		if c.held != nil {
			c.held.keep(0)
			c.held = nil
		}
		it.release()
	}
	if !broken {
		_ = c.flush()
	}
}

func (c *conn) answer(it *item) error {
	resp := it.answer
	if resp != nil {
		c.refused(it).Inc()
	} else {
		var err error
		if it.begun != nil {
			resp, err = c.s.endProduce(c.work, it.begun)
		} else {
			var req kmsg.Request
			if req, err = c.decode(it); err != nil {
				return err
			}
			resp, err = it.api.handle(c.work, c, it.h, req)
		}
		it.m.seconds.Observe(time.Since(it.came).Seconds())
		if err != nil {
			it.m.failed.Inc()
			return err
		}
		it.m.ok.Inc()
	}
	if resp == nil {
		return c.flushUnlessMore()
	}
	b := make([]byte, 4, 256)
	b = binary.BigEndian.AppendUint32(b, uint32(it.h.correlation))
	// The header of an ApiVersions response never has tags: a client reads it before it knows the broker's versions.
	if resp.IsFlexible() && it.h.key != 18 {
		b = append(b, 0)
	}
	b = resp.AppendTo(b)
	if n := len(b) - 4; n > c.s.cfg.answerBytesMax {
		return c.s.tooLarge(n)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	if err := c.write(b); err != nil {
		return err
	}
	c.s.m.bytesOut.Add(float64(len(b)))
	return c.flushUnlessMore()
}

// write sends an answer, or keeps it to be sent with the next. The time that a client has is for each piece: whoever has a slow line is to get a
// long answer too, and whoever takes nothing holds its memory no longer than that.
func (c *conn) write(b []byte) error {
	for len(b) > 0 {
		piece := b[:min(len(b), answerStretch)]
		if len(piece) > c.out.Available() {
			if err := c.nc.SetWriteDeadline(time.Now().Add(c.s.cfg.FrameTimeout)); err != nil {
				return err
			}
		}
		if _, err := c.out.Write(piece); err != nil {
			return err
		}
		b = b[len(piece):]
	}
	return nil
}

// flushUnlessMore sends what was written unless the next answer follows at once.
func (c *conn) flushUnlessMore() error {
	if len(c.queue) > 0 && c.out.Buffered() < 16<<10 {
		return nil
	}
	return c.flush()
}

// flush sends what was written.
func (c *conn) flush() error {
	if c.out.Buffered() == 0 {
		return nil
	}
	if err := c.nc.SetWriteDeadline(time.Now().Add(c.s.cfg.FrameTimeout)); err != nil {
		return err
	}
	return c.out.Flush()
}

// flushEarlier sends what was written because the request being answered has to wait: earlier answers are not to wait with it.
func (c *conn) flushEarlier() {
	if c.flush() != nil {
		// The reader notices, and ends the wait; the next answer fails.
		_ = c.nc.Close()
	}
}
