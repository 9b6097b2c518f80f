package server

import (
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/quorate/quorate/internal/errs"
)

// decodeConfig puts what a YAML file says into c. It names the field, the value and what may stand there of whatever is wrong, which the library
// does in terms of Go.
func decodeConfig(path string, doc *yaml.Node, c *Config) error {
	if len(doc.Content) == 0 {
		return nil
	}
	d := configDecoder{path: path}
	if err := d.check("", doc.Content[0], reflect.TypeOf(*c)); err != nil {
		return err
	}
	if err := doc.Decode(c); err != nil {
		return errs.New(errs.Invalid, "configuration %s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return nil
}

// configDecoder checks that a file has the form of a Config.
type configDecoder struct{ path string }

func (d configDecoder) bad(n *yaml.Node, format string, args ...any) error {
	return errs.New(errs.Invalid, "configuration %s, line %d: "+format, append([]any{d.path, n.Line}, args...)...)
}

// check checks that a value at a key can become a t. A key with nothing behind it has its default.
func (d configDecoder) check(key string, n *yaml.Node, t reflect.Type) error {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil
	}
	name := key
	if name == "" {
		name = "the file"
	}
	switch t.Kind() {
	case reflect.Struct:
		if n.Kind != yaml.MappingNode {
			return d.bad(n, "%s is %s; it has keys: %s", name, show(n), strings.Join(keysOf(t), ", "))
		}
		return d.fields(key, n, t)
	case reflect.Map:
		if n.Kind != yaml.MappingNode {
			return d.bad(n, "%s is %s; write NAME: VALUE for each", name, show(n))
		}
		return d.entries(key, n, t)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			return d.bad(n, "%s is %s; it is a list, in brackets", name, show(n))
		}
		for _, e := range n.Content {
			if err := d.check(key, e, t.Elem()); err != nil {
				return err
			}
		}
		return nil
	}
	return d.scalar(name, n, t)
}

// fields checks a section: each of its keys must be known, and stand there once.
func (d configDecoder) fields(key string, n *yaml.Node, t reflect.Type) error {
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Tag == "!!merge" {
			if err := d.merged(key, v, t); err != nil {
				return err
			}
			continue
		}
		at := below(key, k.Value)
		if seen[k.Value] {
			return d.bad(k, "%s stands there twice", at)
		}
		seen[k.Value] = true
		f, ok := fieldOf(t, k.Value)
		if !ok {
			return d.bad(k, "there is no key %s; there are %s", at, strings.Join(keysOf(t), ", "))
		}
		if err := d.check(at, v, f.Type); err != nil {
			return err
		}
	}
	return nil
}

// merged checks what a section takes from elsewhere (https://yaml.org/type/merge.html): a section, or a list of some.
func (d configDecoder) merged(key string, n *yaml.Node, t reflect.Type) error {
	all := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		all = n.Content
	}
	for _, n := range all {
		// A section that is merged into itself is refused by the library, but not here.
		if n.Kind == yaml.AliasNode && n.Alias.Kind == yaml.MappingNode {
			if slices.ContainsFunc(n.Alias.Content, func(k *yaml.Node) bool { return k.Tag == "!!merge" }) {
				return d.bad(n, "%s merges what is merged itself; write it out", key)
			}
		}
		if err := d.check(key, n, t); err != nil {
			return err
		}
	}
	return nil
}

// entries checks what has names that the user chose.
func (d configDecoder) entries(key string, n *yaml.Node, t reflect.Type) error {
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if seen[k.Value] {
			return d.bad(k, "%s stands there twice", below(key, k.Value))
		}
		seen[k.Value] = true
		if err := d.scalar("a name in "+key, k, t.Key()); err != nil {
			return err
		}
		if err := d.check(below(key, k.Value), v, t.Elem()); err != nil {
			return err
		}
	}
	return nil
}

// scalar checks a plain value.
func (d configDecoder) scalar(name string, n *yaml.Node, t reflect.Type) error {
	want := ""
	switch {
	case t == reflect.TypeFor[time.Duration]():
		want = "a time with its unit, such as 5s"
	case t.Kind() == reflect.Bool:
		want = "true or false"
	case t.Kind() == reflect.String:
		want = "a text"
	case t.Kind() >= reflect.Uint && t.Kind() <= reflect.Uint64:
		want = "a whole number, not negative"
	default:
		want = "a whole number"
	}
	// The library makes 1 of 1.5.
	fraction := n.Tag == "!!float" && t.Kind() != reflect.String
	if n.Kind != yaml.ScalarNode || fraction || n.Decode(reflect.New(t).Interface()) != nil {
		return d.bad(n, "%s is %s; it must be %s", name, show(n), want)
	}
	return nil
}

func below(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

// show shows a value of the file.
func show(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a section of keys"
	case yaml.SequenceNode:
		return "a list"
	}
	const most = 80
	if r := []rune(n.Value); len(r) > most {
		return `"` + string(r[:most]) + `…"`
	}
	return `"` + n.Value + `"`
}

// keysOf returns the keys of a section, in the order of its fields.
func keysOf(t reflect.Type) (keys []string) {
	for f := range t.Fields() {
		if key := f.Tag.Get("yaml"); key != noKey {
			keys = append(keys, key)
		}
	}
	return keys
}

// noKey is the tag of a field that a file cannot set.
const noKey = "-"

func fieldOf(t reflect.Type, key string) (reflect.StructField, bool) {
	for f := range t.Fields() {
		if f.Tag.Get("yaml") == key && key != noKey {
			return f, true
		}
	}
	return reflect.StructField{}, false
}
