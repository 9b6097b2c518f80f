package datatypes

// globBytesMax bounds a pattern; with it, and since only the last star is tried again, matching costs at most
// len(pattern)*len(s).
const globBytesMax = 4096

// Match reports whether s matches a Redis glob pattern: * ? [a-z] [^a] and \ before a literal.
func Match(pattern, s []byte) bool {
	p, i := 0, 0
	starP, starI := -1, 0
	for i < len(s) {
		if p < len(pattern) && pattern[p] == '*' {
			starP, starI = p, i
			p++
			continue
		}
		if p < len(pattern) {
			if ok, next := matchOne(pattern, p, s[i]); ok {
				p, i = next, i+1
				continue
			}
		}
		if starP < 0 {
			return false
		}
		// The last star takes one byte more.
		starI++
		p, i = starP+1, starI
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// matchOne matches a byte against the element of the pattern at p, and returns where the next element starts.
func matchOne(pattern []byte, p int, ch byte) (ok bool, next int) {
	switch pattern[p] {
	case '?':
		return true, p + 1
	case '\\':
		if p+1 < len(pattern) {
			p++
		}
		return pattern[p] == ch, p + 1
	case '[':
		return matchClass(pattern, p+1, ch)
	}
	return pattern[p] == ch, p + 1
}

// matchClass matches a byte against a class; an unclosed class ends with the pattern, as in Redis.
func matchClass(pattern []byte, p int, ch byte) (ok bool, next int) {
	not := p < len(pattern) && pattern[p] == '^'
	if not {
		p++
	}
	for ; p < len(pattern) && pattern[p] != ']'; p++ {
		switch {
		case pattern[p] == '\\' && p+1 < len(pattern):
			p++
			ok = ok || pattern[p] == ch
		case p+2 < len(pattern) && pattern[p+1] == '-':
			lo, hi := min(pattern[p], pattern[p+2]), max(pattern[p], pattern[p+2])
			ok = ok || lo <= ch && ch <= hi
			p += 2
		default:
			ok = ok || pattern[p] == ch
		}
	}
	return ok != not, min(p+1, len(pattern))
}
