package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// byteSize is a number of bytes that can be given as 1048576, 1024KiB or 1MiB.
type byteSize int64

// UnmarshalText parses a flag's value.
func (b *byteSize) UnmarshalText(text []byte) error {
	s, unit := string(text), int64(1)
	for suffix, n := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if number, ok := strings.CutSuffix(s, suffix); ok {
			s, unit = number, n
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return fmt.Errorf("%q is not a size such as 1048576, 512KiB or 1MiB", text)
	}
	*b = byteSize(n * unit)
	return nil
}
