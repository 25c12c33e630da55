package pods

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// logLimit is the size at which a container's log begins anew; the part before is kept beside it.
	logLimit = 64 << 20
	// lineLimit is where a line that does not end is cut.
	lineLimit = 16 << 10
	// followEvery is how often a log that is followed is looked at.
	followEvery = 100 * time.Millisecond
)

// Log writes what a container says, each line with its time and stream, in the format of container runtimes.
type Log struct {
	mu   sync.Mutex
	path string
	file *os.File
	size int64
}

// OpenLog begins a log.
func OpenLog(path string) (*Log, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return &Log{path: path, file: file}, nil
}

// Stream is a writer for one of a container's two outputs.
func (l *Log) Stream(name string) *LogStream { return &LogStream{log: l, name: name} }

// Close ends the log.
func (l *Log) Close() error { return l.file.Close() }

func (l *Log) line(stream string, text []byte, whole bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > logLimit {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	tag := "P"
	if whole {
		tag = "F"
	}
	n, err := fmt.Fprintf(l.file, "%s %s %s %s\n", time.Now().UTC().Format(time.RFC3339Nano), stream, tag, text)
	l.size += int64(n)
	return err
}

func (l *Log) rotate() error {
	if err := os.Rename(l.path, l.path+".old"); err != nil {
		return err
	}
	file, err := os.Create(l.path)
	if err != nil {
		return err
	}
	old := l.file
	l.file, l.size = file, 0
	return old.Close()
}

// LogStream cuts what is written to it into lines.
type LogStream struct {
	log  *Log
	name string
	rest []byte
}

func (s *LogStream) Write(text []byte) (int, error) {
	s.rest = append(s.rest, text...)
	for {
		end := bytes.IndexByte(s.rest, '\n')
		switch {
		case end >= 0:
			if err := s.log.line(s.name, s.rest[:end], true); err != nil {
				return 0, err
			}
			s.rest = s.rest[end+1:]
		case len(s.rest) >= lineLimit:
			if err := s.log.line(s.name, s.rest, false); err != nil {
				return 0, err
			}
			s.rest = nil
		default:
			s.rest = append([]byte{}, s.rest...)
			return len(text), nil
		}
	}
}

// Flush writes a last line that has no end.
func (s *LogStream) Flush() error {
	if len(s.rest) == 0 {
		return nil
	}
	rest := s.rest
	s.rest = nil
	return s.log.line(s.name, rest, true)
}

// ReadOptions are which lines of a log to read.
type ReadOptions struct {
	// Tail is how many of the last lines; all if negative.
	Tail       int
	Since      time.Time
	Timestamps bool
	// Limit is how many bytes at most; no limit if zero.
	Limit int64
}

// lineAfter is a line as it was written, if it is not older than a time.
func lineAfter(line string, options ReadOptions) (string, bool) {
	stamp, rest, _ := strings.Cut(line, " ")
	_, rest, _ = strings.Cut(rest, " ")
	tag, text, _ := strings.Cut(rest, " ")
	at, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil || at.Before(options.Since) {
		return "", false
	}
	if options.Timestamps {
		text = stamp + " " + text
	}
	if tag == "F" {
		text += "\n"
	}
	return text, true
}

// ReadLog copies a log. It follows it until ended is closed, if follow is set.
func ReadLog(ctx context.Context, path string, options ReadOptions, ended <-chan struct{}, out io.Writer) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if options.Limit > 0 {
		out = &limited{out, options.Limit}
	}
	in := bufio.NewReader(file)
	if options.Tail >= 0 {
		if in, err = skipToTail(file, options); err != nil {
			return err
		}
	}
	partial := ""
	for {
		last := isClosed(ended)
		for {
			text, err := in.ReadString('\n')
			partial += text
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			if line, wanted := lineAfter(strings.TrimSuffix(partial, "\n"), options); wanted {
				if _, err := io.WriteString(out, line); err != nil {
					return err
				}
			}
			partial = ""
		}
		if last {
			return nil
		}
		select {
		case <-time.After(followEvery):
		case <-ctx.Done():
			return nil
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// skipToTail goes to where the last lines begin.
func skipToTail(file *os.File, options ReadOptions) (*bufio.Reader, error) {
	var starts []int64
	position := int64(0)
	in := bufio.NewReader(file)
	for {
		text, err := in.ReadString('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if _, wanted := lineAfter(strings.TrimSuffix(text, "\n"), options); wanted {
			starts = append(starts, position)
			if len(starts) > options.Tail {
				starts = starts[1:]
			}
		}
		position += int64(len(text))
	}
	if len(starts) > 0 {
		position = starts[0]
	}
	if _, err := file.Seek(position, io.SeekStart); err != nil {
		return nil, err
	}
	return bufio.NewReader(file), nil
}

type limited struct {
	out  io.Writer
	left int64
}

func (l *limited) Write(text []byte) (int, error) {
	if int64(len(text)) > l.left {
		n, err := l.out.Write(text[:l.left])
		l.left -= int64(n)
		if err == nil {
			err = io.ErrShortWrite
		}
		return n, err
	}
	n, err := l.out.Write(text)
	l.left -= int64(n)
	return n, err
}
