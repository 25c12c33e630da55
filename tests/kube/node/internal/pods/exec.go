package pods

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/utils/exec"

	"crescendo.dev/kube-node/internal/sandbox"
)

// outputLimit bounds what is kept of what a probe or hook writes.
const outputLimit = 10 << 10

// runInside runs a program in a container and gives what it wrote.
func runInside(ctx context.Context, r *run, line []string) (string, error) {
	if len(line) == 0 {
		return "", fmt.Errorf("exec: no command")
	}
	command, start := sandbox.Enter(r.process.PID, insideSpec(r, line, false))
	out := &bounded{limit: outputLimit}
	command.Stdout, command.Stderr = out, out
	command.WaitDelay = time.Second
	if _, err := start(); err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			return out.String(), fmt.Errorf("command %v: %w: %s", line, err, out.String())
		}
		return out.String(), nil
	case <-ctx.Done():
		killGroup(command.Process.Pid)
		<-ended
		return out.String(), fmt.Errorf("command %v timed out", line)
	}
}

func insideSpec(r *run, line []string, terminal bool) sandbox.Command {
	return sandbox.Command{Line: line, Env: r.spec.Env, WorkingDir: r.spec.WorkingDir, User: r.spec.User, Terminal: terminal}
}

// killGroup ends a program that was started as the leader of a session, and what it started.
func killGroup(leader int) {
	if err := unix.Kill(-leader, unix.SIGKILL); err != nil {
		// It may not have become a leader yet.
		_ = unix.Kill(leader, unix.SIGKILL)
	}
}

type bounded struct {
	bytes.Buffer
	limit int
}

func (b *bounded) Write(text []byte) (int, error) {
	if room := b.limit - b.Len(); room > 0 {
		b.Buffer.Write(text[:min(room, len(text))])
	}
	return len(text), nil
}

// Streams are those of a program that somebody runs in a container.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	// Terminal: it gets a terminal, whose sizes come from Sizes.
	Terminal bool
	Sizes    <-chan Size
}

// Size is that of a terminal.
type Size struct{ Width, Height uint16 }

// attach runs a program in a container with somebody's streams. One that fails gives an error that has its exit code.
func attach(ctx context.Context, r *run, line []string, streams Streams) error {
	command, start := sandbox.Enter(r.process.PID, insideSpec(r, line, streams.Terminal))
	if !streams.Terminal {
		command.Stdout, command.Stderr = streams.Out, streams.Err
	}
	command.WaitDelay = time.Second
	var in io.WriteCloser
	if streams.In != nil && !streams.Terminal {
		pipe, err := command.StdinPipe()
		if err != nil {
			return err
		}
		in = pipe
	}
	own, err := start()
	if err != nil {
		return err
	}
	var said chan struct{}
	if own != nil {
		defer own.Close()
		in = own
		go resize(ctx, own, streams.Sizes)
		said = make(chan struct{})
		go func() {
			copyAll(streams.Out, own)
			close(said)
		}()
	}
	if in != nil && streams.In != nil {
		go func() {
			copyAll(in, streams.In)
			if own == nil {
				in.Close()
			}
		}()
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	select {
	case err := <-ended:
		if said != nil {
			// What it said last is still on its way.
			select {
			case <-said:
			case <-time.After(time.Second):
			}
		}
		if code := command.ProcessState.ExitCode(); err != nil && code > 0 {
			return exec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
		}
		return err
	case <-ctx.Done():
		killGroup(command.Process.Pid)
		<-ended
		return ctx.Err()
	}
}

func copyAll(to io.Writer, from io.Reader) {
	// It ends when either side does.
	_, _ = io.Copy(to, from)
}

func resize(ctx context.Context, terminal *os.File, sizes <-chan Size) {
	for {
		select {
		case size, more := <-sizes:
			if !more {
				return
			}
			// A size that comes after the end is of no use.
			_ = sandbox.Resize(terminal, size.Width, size.Height)
		case <-ctx.Done():
			return
		}
	}
}
