package datatypes

import "bytes"

// crcTable is the CRC16 of the Redis cluster specification (XMODEM: polynomial 0x1021, initial value 0), by bytes.
var crcTable = makeCRCTable()

func makeCRCTable() (t [256]uint16) {
	for i := range t {
		crc := uint16(i) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
		t[i] = crc
	}
	return t
}

// Tag returns the part of a key that decides its slot, what stands between the first '{' and the next '}', and whether
// there is such a part; otherwise it is the whole key.
func Tag(key []byte) ([]byte, bool) {
	if i := bytes.IndexByte(key, '{'); i >= 0 {
		if n := bytes.IndexByte(key[i+1:], '}'); n > 0 {
			return key[i+1 : i+1+n], true
		}
	}
	return key, false
}

// Slot returns the hash slot of a key (Redis cluster specification, "Key distribution model").
func Slot(key []byte) uint16 {
	tag, _ := Tag(key)
	var crc uint16
	for _, b := range tag {
		crc = crc<<8 ^ crcTable[byte(crc>>8)^b]
	}
	return crc & 0x3fff
}
