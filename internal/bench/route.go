package bench

import (
	"bufio"
	"context"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
)

// route finds out which keys each address leads, as a cluster client does, and gives each client one of the addresses: more
// clients to those that lead more keys. The clients then ask for nothing that would have to be forwarded.
func (r *run) route(ctx context.Context) error {
	switch r.cfg.Op {
	case "set", "get", "incr":
	default:
		return errs.New(errs.Invalid, "the load %s cannot be routed by key; use set, get or incr", r.cfg.Op)
	}
	owner, err := slots(ctx, r.cfg.Addrs[0])
	if err != nil {
		return err
	}
	byAddr := map[string]*routed{}
	var all []*routed
	for i := range r.cfg.Keys {
		k := r.key(i)
		slot := datatypes.Slot([]byte(k))
		addr := owner[slot]
		if addr == "" {
			return errs.New(errs.Unavailable, "slot %d has no leader; wait until the cluster is ready", slot)
		}
		t := byAddr[addr]
		if t == nil {
			t = &routed{addr: addr}
			byAddr[addr] = t
			all = append(all, t)
		}
		t.keys = append(t.keys, k)
	}
	// Clients in proportion to keys, each address at least one: the client with number i takes the key i/n of the way.
	for i := range r.cfg.Clients {
		at := i * r.cfg.Keys / r.cfg.Clients
		for _, t := range all {
			if at -= len(t.keys); at < 0 {
				r.routes = append(r.routes, t)
				break
			}
		}
	}
	return nil
}

// routed are the keys that an address leads.
type routed struct {
	addr string
	keys []string
}

// slots asks a node which address leads each slot.
func slots(ctx context.Context, addr string) (owner [shard.SlotCount]string, err error) {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return owner, errs.Wrap(errs.Unavailable, err, "connect to %s", addr)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return owner, err
	}
	if _, err := c.Write(appendCommand(nil, "CLUSTER", "SLOTS")); err != nil {
		return owner, err
	}
	v, err := readValue(bufio.NewReader(c), 0)
	if err != nil {
		return owner, errs.Wrap(errs.Unavailable, err, "ask %s for CLUSTER SLOTS", addr)
	}
	ranges, _ := v.([]any)
	for _, v := range ranges {
		f, _ := v.([]any)
		if len(f) < 3 {
			continue
		}
		node, _ := f[2].([]any)
		from, to := number(f[0]), number(f[1])
		if len(node) < 2 || from < 0 || to >= len(owner) {
			continue
		}
		host, _ := node[0].(string)
		if host == "" {
			host, _, _ = net.SplitHostPort(addr)
		}
		for s := from; s <= to; s++ {
			owner[s] = net.JoinHostPort(host, strconv.Itoa(number(node[1])))
		}
	}
	return owner, nil
}

func number(v any) int {
	s, _ := v.(string)
	n, err := strconv.Atoi(s)
	if err != nil {
		return -1
	}
	return n
}

// readValue reads one RESP2 reply: a string for anything that is not an array.
func readValue(r *bufio.Reader, depth int) (any, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if len(line) < 2 || depth > 8 {
		return nil, errs.New(errs.Invalid, "malformed reply")
	}
	n, _ := strconv.Atoi(line[1:])
	switch line[0] {
	case '-':
		return nil, errs.New(errs.Unavailable, "%s", line[1:])
	case '$':
		if n < 0 || n > 1<<20 {
			return "", nil
		}
		b := make([]byte, n+2)
		for read := 0; read < len(b); {
			m, err := r.Read(b[read:])
			if err != nil {
				return nil, err
			}
			read += m
		}
		return string(b[:n]), nil
	case '*':
		var all []any
		for range min(max(n, 0), 1<<16) {
			v, err := readValue(r, depth+1)
			if err != nil {
				return nil, err
			}
			all = append(all, v)
		}
		return all, nil
	}
	return line[1:], nil
}
