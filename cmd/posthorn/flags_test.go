package main

import (
	"testing"
	"time"
)

func TestByteSize(t *testing.T) {
	for text, want := range map[string]byteSize{
		"0": 0, "1048576": 1 << 20, "512KiB": 512 << 10, "1MiB": 1 << 20, "25 MiB": 25 << 20, "2GiB": 2 << 30,
	} {
		var got byteSize
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "1.5MiB", "1MB", "MiB", "9223372036854775807KiB", "99999999999999999999"} {
		var got byteSize
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: %d, want an error", text, got)
		}
	}
}

func TestMoment(t *testing.T) {
	for text, want := range map[string]time.Time{
		"2021-02-25T15:02:10Z":      time.Unix(1614265330, 0),
		"2021-02-25T16:02:10+01:00": time.Unix(1614265330, 0),
		"2021-02-25T15:02:10.5Z":    time.Unix(1614265330, 5e8),
		"1614265330":                time.Unix(1614265330, 0),
		"2021-02-25":                time.Date(2021, 2, 25, 0, 0, 0, 0, time.UTC),
	} {
		var got moment
		if err := got.UnmarshalText([]byte(text)); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	var ago moment
	if err := ago.UnmarshalText([]byte("90m")); err != nil || time.Since(ago.Time).Round(time.Minute) != 90*time.Minute {
		t.Errorf("90m: %v, %v", ago, err)
	}
	for _, text := range []string{"", "yesterday", "15:04", "2021-13-01"} {
		var got moment
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: %v, want an error", text, got)
		}
	}
}
