package datatypes

import (
	"bytes"
	"math/big"
	"strconv"
)

// ParseInt reads a decimal integer in the one form Redis takes: no plus sign, no space, no leading zero.
func ParseInt(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 20 {
		return 0, false
	}
	digits := b
	if b[0] == '-' {
		digits = b[1:]
		if len(digits) == 0 || digits[0] == '0' {
			return 0, false
		}
	}
	if digits[0] == '0' && len(digits) > 1 {
		return 0, false
	}
	var n uint64
	for _, ch := range digits {
		if ch < '0' || ch > '9' || n > (1<<63)/10 {
			return 0, false
		}
		n = n*10 + uint64(ch-'0')
	}
	if b[0] == '-' {
		return -int64(n), n <= 1<<63
	}
	return int64(n), n < 1<<63
}

// ParseInt32 reads an integer that Redis keeps in 32 bits.
func ParseInt32(b []byte) (int32, error) {
	n, ok := ParseInt(b)
	switch {
	case !ok:
		return 0, errNotInteger()
	case n != int64(int32(n)):
		return 0, plain("value is out of range, value must between -2147483648 and 2147483647")
	}
	return int32(n), nil
}

// floatBits is the mantissa of the x87 extended format, in which Redis on amd64 computes INCRBYFLOAT. Computing in
// software with the same precision gives the same digits there, and the same on every machine.
const (
	floatBits   = 64
	floatExpMax = 16384
	floatExpMin = -16445
)

// parseFloat reads a decimal floating-point number; infinities are reported apart, and NaN is none.
func parseFloat(b []byte) (f *big.Float, inf, ok bool) {
	s := string(b)
	if len(s) == 0 || len(s) > 5*1024 {
		return nil, false, false
	}
	rest := s
	if rest[0] == '+' || rest[0] == '-' {
		rest = rest[1:]
	}
	switch {
	case equalFold([]byte(rest), "inf"), equalFold([]byte(rest), "infinity"):
		return nil, true, true
	case !decimal(rest):
		return nil, false, false
	}
	f, _, err := big.ParseFloat(s, 10, floatBits, big.ToNearestEven)
	if err != nil || f.IsInf() || f.MantExp(nil) > floatExpMax {
		return nil, false, false
	}
	if f.Sign() != 0 && f.MantExp(nil) < floatExpMin {
		return nil, false, false
	}
	return f, false, true
}

// decimal says whether s is digits with at most one point and an optional exponent.
func decimal(s string) bool {
	i, digits := 0, 0
	for point := false; i < len(s); i++ {
		if s[i] == '.' && !point {
			point = true
			continue
		}
		if s[i] < '0' || s[i] > '9' {
			break
		}
		digits++
	}
	if digits == 0 {
		return false
	}
	if i == len(s) {
		return true
	}
	if s[i] != 'e' && s[i] != 'E' {
		return false
	}
	i++
	if i < len(s) && (s[i] == '+' || s[i] == '-') {
		i++
	}
	// Six digits are more than any exponent that is in range, and keep the parser's work small.
	if i == len(s) || len(s)-i > 6 {
		return false
	}
	_, err := strconv.ParseUint(s[i:], 10, 32)
	return err == nil
}

// addFloat returns a+b as Redis prints it: 17 decimals without the zeros at the end.
func addFloat(a, b *big.Float) ([]byte, bool) {
	sum := new(big.Float).SetPrec(floatBits).SetMode(big.ToNearestEven).Add(a, b)
	if sum.MantExp(nil) > floatExpMax {
		return nil, false
	}
	s := sum.Append(nil, 'f', 17)
	s = bytes.TrimRight(s, "0")
	s = bytes.TrimSuffix(s, []byte("."))
	if string(s) == "-0" {
		s = []byte("0")
	}
	return s, true
}

// equalFold compares an argument with a lower-case ASCII word.
func equalFold(b []byte, word string) bool {
	if len(b) != len(word) {
		return false
	}
	for i := range b {
		ch := b[i]
		if ch >= 'A' && ch <= 'Z' {
			ch += 'a' - 'A'
		}
		if ch != word[i] {
			return false
		}
	}
	return true
}
