package redis

import (
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/shardtest"
)

func TestCluster_SlotsAndKeysAsInRedis(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{ClusterMode: true})
	threeNodes(r.c, "127.0.0.1:7000")
	c := r.dial()
	c.want("set foo 1", "+OK")
	const integer, both = "-ERR value is not an integer or out of range", "-ERR Invalid slot or number of keys"
	for line, want := range map[string]string{
		"countkeysinslot 12182":           ":1",
		"countkeysinslot 16384":           "-ERR Invalid slot",
		"countkeysinslot -1":              "-ERR Invalid slot",
		"countkeysinslot x":               integer,
		"getkeysinslot 12182 99999999999": `["foo"]`,
		"getkeysinslot 16384 x":           integer,
		"getkeysinslot x 1":               integer,
		"getkeysinslot 16384 1":           both,
		"getkeysinslot 1 -1":              both,
	} {
		c.want("cluster "+line, want)
	}
	if got := c.do("cluster", "slots"); strings.Count(got, "[]]") != 3 {
		t.Errorf("CLUSTER SLOTS: %s", got)
	}
	c.do("hello", "3")
	if got := c.do("cluster", "slots"); strings.Count(got, "{}]") != 3 {
		t.Errorf("CLUSTER SLOTS in RESP3: %s", got)
	}
}
