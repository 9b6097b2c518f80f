package bench

import (
	"bufio"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

func TestRun_WhatIsNoLoadIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no addresses": func(c *Config) { c.Addrs = nil }, "no clients": func(c *Config) { c.Clients = 0 }, "no pipeline": func(c *Config) { c.Pipeline = 0 },
		"no keys": func(c *Config) { c.Keys = 0 }, "less than no value": func(c *Config) { c.ValueBytes = -1 }, "no time": func(c *Config) { c.For = 0 },
		"less than no time before": func(c *Config) { c.Warm = -1 }, "no operation": func(c *Config) { c.Op = "" }, "another operation": func(c *Config) { c.Op = "del" },
		"events by key": func(c *Config) { c.Op, c.Cluster = "event", true },
	} {
		// Nobody is asked: there is nobody.
		c := load("127.0.0.1:1", time.Second)
		change(&c)
		if _, err := Run(t.Context(), c); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a server answers with an error is none of its requests a second.
func TestRun_ErrorsAreNoRequests(t *testing.T) {
	r, err := Run(t.Context(), load(serve(t, func() string { return "-BUSY try later\r\n" }), 50*time.Millisecond))
	if err != nil || r.Requests != 0 || r.Errors == 0 || r.FirstError != "BUSY try later" || r.PerSecond != 0 {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestRequest_OfEachOperation(t *testing.T) {
	for op, want := range map[string]string{
		"set": "*3|$3|SET|$5|key:0|$2|vv|", "get": "*2|$3|GET|$5|key:0|", "incr": "*2|$4|INCR|$6|nkey:0|", "event": "*3|$9|EVENT.ADD|$5|bench|$2|vv|",
		"set-event": "*1|$5|MULTI|*3|$3|SET|$5|key:0|$2|vv|*5|$9|EVENT.ADD|$5|bench|$2|vv|$3|KEY|$5|key:0|*1|$4|EXEC|",
	} {
		r := &run{cfg: Config{Op: op, Keys: 1}, value: []byte("vv")}
		got := r.request(nil, 0, rand.New(rand.NewPCG(1, 1)))
		if s := strings.ReplaceAll(string(got), "\r\n", "|"); s != want || r.replies() != strings.Count(want, "*") {
			t.Errorf("%s: %s with %d replies, want %s", op, s, r.replies(), want)
		}
	}
}

func TestReadReply_OfEachKind(t *testing.T) {
	for in, want := range map[string]struct {
		failed string
		null   bool
	}{
		"+OK\r\n": {}, ":5\r\n": {}, "$2\r\nab\r\n": {}, "$0\r\n\r\n": {}, "$-1\r\n": {null: true}, "*-1\r\n": {null: true}, "*0\r\n": {}, "-ERR no\r\n": {failed: "ERR no"},
		// The answer of EXEC has those of its commands.
		"*3\r\n+OK\r\n-FENCED late\r\n:1\r\n": {failed: "FENCED late"}, "*2\r\n*1\r\n:1\r\n$-1\r\n": {},
	} {
		rd := bufio.NewReader(strings.NewReader(in + "+next\r\n"))
		failed, null, err := readReply(rd)
		rest, _ := rd.ReadString('\n')
		if err != nil || failed != want.failed || null != want.null || rest != "+next\r\n" {
			t.Errorf("%q: %q, null %v, %v, then %q; want %+v", in, failed, null, err, rest, want)
		}
	}
	for _, in := range []string{"\n", "\r\n", "?x\r\n", "$x\r\n", "*x\r\n", "$5\r\nab", "*2\r\n+OK\r\n", "+OK"} {
		if _, _, err := readReply(bufio.NewReader(strings.NewReader(in))); err == nil {
			t.Errorf("%q was read", in)
		}
	}
}
