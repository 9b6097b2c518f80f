package redis

import (
	"fmt"
	"strings"
	"testing"
)

func TestEventAdd_AllBehindHeaderAreHeaders(t *testing.T) {
	many := strings.Repeat(" n v", headersMax)
	for line, want := range map[string]string{
		"HEADER a 1 key 2":                           "null -1 a=1 key=2",
		"header KEY 1 PARTITION 2 header 3":          "null -1 KEY=1 PARTITION=2 header=3",
		"PARTITION 7 KEY k HEADER partition x key y": "k 7 partition=x key=y",
		"KEY k KEY l":                                "l -1",
		"HEADER a 1 HEADER b 2":                      "syntax error",
		"HEADER a 1 HEADER":                          "syntax error",
		"HEADER a":                                   "syntax error",
		"HEADER":                                     "syntax error",
		"HEADER a 1 KEY":                             "syntax error",
		"a 1":                                        "syntax error",
		"PARTITION x HEADER a 1":                     "PARTITION must be a number from 0 to 2147483647",
		"HEADER" + many:                              "null -1" + strings.ReplaceAll(many, "n v", "n=v"),
		"HEADER" + many + " n v":                     "more than 1024 headers",
	} {
		var args [][]byte
		for _, w := range strings.Fields("event.add t value " + line) {
			args = append(args, []byte(w))
		}
		e, partition, err := parseEvent(args)
		got := fmt.Sprint(err)
		if err == nil {
			key := string(e.Key)
			if e.KeyNull {
				key = "null"
			}
			got = fmt.Sprintf("%s %d", key, partition)
			for _, h := range e.Headers {
				got += fmt.Sprintf(" %s=%s", h.Name, h.Value)
			}
		}
		if !strings.HasSuffix(got, want) {
			t.Errorf("%.60s: got %.80s, want %.80s", line, got, want)
		}
	}
}
