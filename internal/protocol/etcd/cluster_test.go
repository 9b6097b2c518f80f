package etcd

import (
	"slices"
	"testing"
)

func TestClientURLs(t *testing.T) {
	for _, c := range []struct {
		addrs, path string
		secure      bool
		want        []string
	}{
		{"", "", false, nil},
		{"10.0.0.1:2379", "", false, []string{"http://10.0.0.1:2379"}},
		{"[::1]:2379,a:1", "", true, []string{"https://[::1]:2379", "https://a:1"}},
		{"http://a:1,https://b:1", "", true, []string{"http://a:1", "https://b:1"}},
		{"a:1", "/spaces/shop", false, []string{"http://a:1/spaces/shop"}},
		// http://unix:/run/e.sock, as it was, is none that a client can use.
		{"unix:/run/e.sock", "", false, []string{"unix:///run/e.sock"}},
		{"unix:/run/e.sock", "", true, []string{"unixs:///run/e.sock"}},
		{"unix:///run/e.sock,unixs:///run/f.sock,a:1", "/spaces/shop", false, []string{"unix:///run/e.sock", "unixs:///run/f.sock", "http://a:1/spaces/shop"}},
	} {
		if got := clientURLs(c.addrs, c.path, c.secure); !slices.Equal(got, c.want) {
			t.Errorf("%q %q %v: got %q, want %q", c.addrs, c.path, c.secure, got, c.want)
		}
	}
}
