package pods

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func written(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	log, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	out := log.Stream("stdout")
	for _, part := range []string{"one\ntw", "o\n\nthree", " and\n", "end"} {
		if n, err := out.Write([]byte(part)); err != nil || n != len(part) {
			t.Fatal(n, err)
		}
	}
	if err := out.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func readAll(t *testing.T, path string, options ReadOptions) string {
	t.Helper()
	ended := make(chan struct{})
	close(ended)
	var out strings.Builder
	err := ReadLog(context.Background(), path, options, ended, &out)
	if err != nil && options.Limit == 0 {
		t.Fatal(err)
	}
	return out.String()
}

func TestALogIsReadAsItWasWritten(t *testing.T) {
	path := written(t)
	for _, c := range []struct {
		options ReadOptions
		want    string
	}{
		{ReadOptions{Tail: -1}, "one\ntwo\n\nthree and\nend\n"},
		{ReadOptions{Tail: 2}, "three and\nend\n"},
		{ReadOptions{Tail: 0}, ""},
		{ReadOptions{Tail: 100}, "one\ntwo\n\nthree and\nend\n"},
		{ReadOptions{Tail: -1, Limit: 5}, "one\nt"},
		{ReadOptions{Tail: -1, Since: time.Now().Add(time.Hour)}, ""},
	} {
		if got := readAll(t, path, c.options); got != c.want {
			t.Errorf("%+v: got %q, want %q", c.options, got, c.want)
		}
	}
	if got := readAll(t, path, ReadOptions{Tail: 1, Timestamps: true}); !strings.HasSuffix(got, "Z end\n") {
		t.Errorf("with its time: %q", got)
	}
}

func TestALongLineIsCutAndReadAsOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	log, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 3*lineLimit) + "\n"
	if _, err := log.Stream("stdout").Write([]byte(long)); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, path, ReadOptions{Tail: -1}); got != long {
		t.Errorf("%d bytes were read, %d written", len(got), len(long))
	}
}

func TestAFollowedLogGivesWhatComesLater(t *testing.T) {
	path := written(t)
	log, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		time.Sleep(2 * followEvery)
		if _, err := log.Stream("stderr").Write([]byte("late\n")); err != nil {
			t.Error(err)
		}
		close(ended)
	}()
	var out strings.Builder
	if err := ReadLog(context.Background(), path, ReadOptions{Tail: -1}, ended, &out); err != nil || out.String() != "late\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}
