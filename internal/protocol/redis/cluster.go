package redis

import (
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/quorate/quorate/internal/datatypes"
	"github.com/quorate/quorate/internal/shard"
)

// CLUSTER SLOTS | SHARDS | NODES | INFO | MYID | KEYSLOT | COUNTKEYSINSLOT | GETKEYSINSLOT | LINKS | HELP
//
// Behaviour: the shards of the space are ranges of slots; the node that leads a shard is its master, the other nodes that
// hold it are replicas. SLOTS, SHARDS and NODES turn on the cluster behaviour of the connection. A shard without a known
// leader is left out, so that clients ask again.
// Versions: as in Redis 7.0.
// Not supported: subcommands that change the cluster.

var clusterSubs = subcommands{
	arity: map[string]int{"slots": 2, "shards": 2, "nodes": 2, "info": 2, "myid": 2, "keyslot": 3, "countkeysinslot": 3, "getkeysinslot": 4, "links": 2, "help": 2},
	refused: refusals{{"the cluster is managed by Quorate's own administration",
		"meet forget addslots addslotsrange delslots delslotsrange setslot failover reset replicate replicas slaves flushslots bumpepoch saveconfig set-config-epoch count-failure-reports"}},
}

func cmdCluster(c *conn, args [][]byte) {
	if !c.s.cfg.ClusterMode {
		c.fail("ERR This instance has cluster support disabled")
		return
	}
	switch subcommand(args) {
	case "slots":
		c.cluster = true
		c.clusterSlots()
	case "shards":
		c.cluster = true
		c.clusterShards()
	case "nodes":
		c.cluster = true
		c.text(c.clusterNodes())
	case "info":
		c.text(c.clusterInfo())
	case "myid":
		c.bulk(nodeID(c.topo.Cluster, c.topo.Self))
	case "keyslot":
		c.int(int64(datatypes.Slot(args[2])))
	case "countkeysinslot", "getkeysinslot":
		c.slotKeys(args)
	case "links":
		c.array(0)
	case "help":
		c.helpText("CLUSTER", "SLOTS", "SHARDS", "NODES", "INFO", "MYID", "KEYSLOT <key>", "COUNTKEYSINSLOT <slot>", "GETKEYSINSLOT <slot> <count>")
	}
}

func (c *conn) slotKeys(args [][]byte) {
	slot, ok := datatypes.ParseInt(args[2])
	count, wrong := int64(0), "ERR Invalid slot"
	if len(args) == 4 && ok {
		count, ok = datatypes.ParseInt(args[3])
		wrong = "ERR Invalid slot or number of keys"
	}
	switch {
	case !ok:
		c.fail("ERR value is not an integer or out of range")
		return
	case slot < 0 || slot >= shard.SlotCount || count < 0:
		c.fail(wrong)
		return
	}
	q := datatypes.EncodeSlotCount(uint16(slot))
	if len(args) == 4 {
		q = datatypes.EncodeSlotKeys(uint16(slot), uint32(min(count, math.MaxUint32)))
	}
	if err := c.place(); err != nil {
		c.error(err)
		return
	}
	out, err := c.ask(c.space.SlotShard(uint16(slot)), q)
	if err != nil {
		c.error(err)
		return
	}
	c.keepOut(len(out))
	c.out = append(c.out, out...)
}

// member is a node as cluster clients see it.
type member struct {
	shard.Node
	id, host string
	port     int
}

// member returns a node with its address; for this node, if it advertises none, the address of the connection.
func (c *conn) member(id shard.NodeID) (member, bool) {
	n, ok := c.topo.Node(id)
	if !ok {
		return member{}, false
	}
	addr := n.Addr["redis"]
	if addr == "" && id == c.topo.Self {
		addr = c.nc.LocalAddr().String()
	}
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return member{}, false
	}
	port, err := strconv.Atoi(p)
	if err != nil {
		return member{}, false
	}
	return member{Node: n, id: nodeID(c.topo.Cluster, id), host: host, port: port}, true
}

// master is a node that leads shards of the space, with what it leads and those who hold the same.
type master struct {
	member
	// slots are pairs of first and last.
	slots    []uint16
	replicas []member
	term     uint64
}

// masters returns the leading nodes in the order of their first slot.
func (c *conn) masters() []*master {
	var list []*master
	for i, id := range c.space.Shards {
		info, ok := c.topo.Shard(id)
		if !ok || info.Leader == 0 {
			continue
		}
		k := slices.IndexFunc(list, func(m *master) bool { return m.ID == info.Leader })
		if k < 0 {
			m, ok := c.member(info.Leader)
			if !ok {
				continue
			}
			k, list = len(list), append(list, &master{member: m})
		}
		m := list[k]
		m.term = max(m.term, info.Term)
		first, last := c.space.SlotRange(i)
		if n := len(m.slots); n > 0 && m.slots[n-1]+1 == first {
			m.slots[n-1] = last
		} else {
			m.slots = append(m.slots, first, last)
		}
		for _, r := range info.Replicas {
			if r == info.Leader || slices.ContainsFunc(m.replicas, func(o member) bool { return o.ID == r }) {
				continue
			}
			if o, ok := c.member(r); ok {
				m.replicas = append(m.replicas, o)
			}
		}
	}
	return list
}

func (c *conn) clusterSlots() {
	masters := c.masters()
	n := 0
	for _, m := range masters {
		n += len(m.slots) / 2
	}
	c.array(n)
	for _, m := range masters {
		for i := 0; i < len(m.slots); i += 2 {
			c.array(3 + len(m.replicas))
			c.int(int64(m.slots[i]))
			c.int(int64(m.slots[i+1]))
			for _, o := range append([]member{m.member}, m.replicas...) {
				c.array(4)
				c.bulk(o.host)
				c.int(int64(o.port))
				c.bulk(o.id)
				c.mapOf(0)
			}
		}
	}
}

func (c *conn) clusterShards() {
	masters := c.masters()
	c.array(len(masters))
	for _, m := range masters {
		c.mapOf(2)
		c.bulk("slots")
		c.array(len(m.slots))
		for _, s := range m.slots {
			c.int(int64(s))
		}
		c.bulk("nodes")
		c.array(1 + len(m.replicas))
		for i, o := range append([]member{m.member}, m.replicas...) {
			role, health := "master", "online"
			if i > 0 {
				role = "replica"
			}
			if !o.Up {
				health = "fail"
			}
			c.mapOf(7)
			c.bulk("id")
			c.bulk(o.id)
			c.bulk("port")
			c.int(int64(o.port))
			c.bulk("ip")
			c.bulk(o.host)
			c.bulk("endpoint")
			c.bulk(o.host)
			c.bulk("role")
			c.bulk(role)
			c.bulk("replication-offset")
			c.int(0)
			c.bulk("health")
			c.bulk(health)
		}
	}
}

func (c *conn) clusterNodes() string {
	masters := c.masters()
	var b strings.Builder
	line := func(o member, flags, of, slots string, epoch uint64) {
		if o.ID == c.topo.Self {
			flags = "myself," + flags
		}
		link := "connected"
		if !o.Up {
			flags, link = flags+",fail", "disconnected"
		}
		// The bus port is where Redis would look for its peers: nobody listens there.
		fmt.Fprintf(&b, "%s %s@%d %s %s 0 0 %d %s%s\n", o.id, net.JoinHostPort(o.host, strconv.Itoa(o.port)), o.port+10000, flags, of, epoch, link, slots)
	}
	seen := map[shard.NodeID]bool{}
	for _, m := range masters {
		seen[m.ID] = true
		slots := ""
		for i := 0; i < len(m.slots); i += 2 {
			slots += fmt.Sprintf(" %d-%d", m.slots[i], m.slots[i+1])
		}
		line(m.member, "master", "-", slots, m.term)
	}
	for _, m := range masters {
		for _, o := range m.replicas {
			if !seen[o.ID] {
				seen[o.ID] = true
				line(o, "slave", m.id, "", m.term)
			}
		}
	}
	for _, n := range c.topo.Nodes {
		if o, ok := c.member(n.ID); ok && !seen[n.ID] {
			line(o, "master", "-", "", 0)
		}
	}
	return b.String()
}

func (c *conn) clusterInfo() string {
	masters := c.masters()
	covered, epoch := 0, uint64(0)
	for _, m := range masters {
		epoch = max(epoch, m.term)
		for i := 0; i < len(m.slots); i += 2 {
			covered += int(m.slots[i+1]) - int(m.slots[i]) + 1
		}
	}
	state := "ok"
	if covered != shard.SlotCount {
		state = "fail"
	}
	var b strings.Builder
	for _, f := range []struct {
		name string
		v    any
	}{
		{"cluster_enabled", 1}, {"cluster_state", state}, {"cluster_slots_assigned", shard.SlotCount}, {"cluster_slots_ok", covered},
		{"cluster_slots_pfail", 0}, {"cluster_slots_fail", shard.SlotCount - covered}, {"cluster_known_nodes", len(c.topo.Nodes)},
		{"cluster_size", len(masters)}, {"cluster_current_epoch", epoch}, {"cluster_my_epoch", epoch},
		{"cluster_stats_messages_sent", 0}, {"cluster_stats_messages_received", 0},
	} {
		fmt.Fprintf(&b, "%s:%v\r\n", f.name, f.v)
	}
	return b.String()
}
