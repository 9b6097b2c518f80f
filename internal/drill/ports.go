package drill

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"

	"github.com/quorate/quorate/internal/errs"
)

// Nodes listen on ports of this range, but for those that the system gives to outgoing connections: such a one may be anybody's while a node is down.
const portLow, portHigh = 10_000, 32_767

// ephemeralFile says on Linux which ports outgoing connections get. Other systems begin at 49,152, as IANA has it.
const ephemeralFile = "/proc/sys/net/ipv4/ip_local_port_range"

// portsWanted is how many ports there must be to choose from, so that two drills at once hardly ever choose the same.
const portsWanted = 1000

// listenRange returns the ports to choose from, given the file that tells of outgoing connections; zeros if that leaves too few.
func listenRange(ephemeral string) (low, high int) {
	low, high = portLow, portHigh
	var first, last int
	if b, err := os.ReadFile(ephemeral); err == nil {
		if n, _ := fmt.Sscan(string(b), &first, &last); n == 2 && first <= high && last >= low {
			high = first - 1
			if high-low < portsWanted {
				low, high = last+1, 65_535
			}
		}
	}
	if high-low < portsWanted {
		return 0, 0
	}
	return low, high
}

// freePorts finds ports that nobody listens on.
func freePorts(n int) ([]int, error) {
	low, high := listenRange(ephemeralFile)
	var lns []net.Listener
	var ports []int
	defer func() {
		for _, ln := range lns {
			_ = ln.Close()
		}
	}()
	for tries := 0; len(ports) < n; tries++ {
		port := 0 // the system's choice
		if high > 0 {
			port = low + rand.IntN(high-low+1)
		}
		var lc net.ListenConfig
		ln, err := lc.Listen(context.Background(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			if tries > 100*n {
				return nil, errs.Wrap(errs.Unavailable, err, "find %d free ports from %d to %d", n, low, high)
			}
			continue
		}
		lns = append(lns, ln)
		ports = append(ports, ln.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
