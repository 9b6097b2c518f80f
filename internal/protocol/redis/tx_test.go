package redis

import (
	"testing"

	"github.com/quorate/quorate/internal/shardtest"
)

func TestMulti_WrongSubcommandAbortsIt(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{ClusterMode: true})
	c := r.dial()
	for line, want := range map[string]string{
		"client nosuch":       "-ERR unknown subcommand 'nosuch'. Try CLIENT HELP.",
		"client id x":         "-ERR wrong number of arguments for 'client|id' command",
		"client kill":         "-ERR wrong number of arguments for 'client|kill' command",
		"client tracking on":  "-ERR unsupported command 'client|tracking': client-side caching...",
		"client pause 1":      "-ERR unsupported command 'client|pause': it is not served",
		"config nosuch x":     "-ERR unknown subcommand 'nosuch'. Try CONFIG HELP.",
		"config GET":          "-ERR wrong number of arguments for 'config|get' command",
		"config set a b":      "-ERR unsupported command 'config|set': settings...",
		"command nosuch":      "-ERR unknown subcommand 'nosuch'. Try COMMAND HELP.",
		"command count x":     "-ERR wrong number of arguments for 'command|count' command",
		"command getkeys":     "-ERR wrong number of arguments for 'command|getkeys' command",
		"command getkeys get": "-ERR wrong number of arguments for 'command|getkeys' command",
		"cluster nosuch":      "-ERR unknown subcommand 'nosuch'. Try CLUSTER HELP.",
		"cluster keyslot":     "-ERR wrong number of arguments for 'cluster|keyslot' command",
		"cluster meet x y":    "-ERR unsupported command 'cluster|meet'...",
	} {
		c.want(line, want)
		c.want("multi", "+OK")
		c.want("set a 1", "+QUEUED")
		c.want(line, want)
		c.want("exec", "-EXECABORT Transaction discarded because of previous errors.")
		c.want("exists a", ":0")
	}
	c.want("multi", "+OK")
	for _, line := range []string{"client id", "command", "command info", "COMMAND COUNT", "config get save", "cluster keyslot a"} {
		c.want(line, "+QUEUED")
	}
	c.want("discard", "+OK")
}

func TestExec_WithArgumentsEndsTheTransaction(t *testing.T) {
	r := newRig(t, shardtest.Options{}, Config{})
	c, other := r.dial(), r.dial()
	const aborted = "-EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command"
	c.want("exec x", aborted)
	c.want("watch a", "+OK")
	c.want("multi", "+OK")
	c.want("set a 1", "+QUEUED")
	c.want("exec x", aborted)
	c.want("exec", "-ERR EXEC without MULTI")
	// The keys are not watched any more.
	other.want("set a 2", "+OK")
	c.want("multi", "+OK")
	c.want("get a", "+QUEUED")
	c.want("exec", `["2"]`)
}
