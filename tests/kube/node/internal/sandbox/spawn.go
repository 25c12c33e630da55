package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startDeadline is how long the first process of a sandbox or a container may take until it runs.
const startDeadline = 30 * time.Second

// Spawner starts processes that end when this program does, even if it is killed. The kernel ends a process when the *thread*
// that started it ends, so one thread starts them all and lasts.
type Spawner struct {
	requests chan func()
}

// NewSpawner has one thread, for good.
func NewSpawner() *Spawner {
	s := &Spawner{requests: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for request := range s.requests {
			request()
		}
	}()
	return s
}

func (s *Spawner) start(command *exec.Cmd) error {
	started := make(chan error, 1)
	s.requests <- func() { started <- command.Start() }
	return <-started
}

// Pause is the process that holds a pod's namespaces.
type Pause struct {
	PID     int
	command *exec.Cmd
	ended   chan struct{}
}

// StartPause makes a sandbox, with a network of its own unless it shares the host's.
func (s *Spawner) StartPause(ctx context.Context, hostname string, hostNetwork bool) (*Pause, error) {
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	flags := uintptr(unix.CLONE_NEWUTS | unix.CLONE_NEWIPC)
	if !hostNetwork {
		flags |= unix.CLONE_NEWNET
	}
	command := exec.Command("/proc/self/exe", PauseArgument, hostname)
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Setsid: true}
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.start(command); err != nil {
		return nil, fmt.Errorf("start a sandbox: %w", err)
	}
	pause := &Pause{PID: command.Process.Pid, command: command, ended: make(chan struct{})}
	ready := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(out).ReadString('\n')
		ready <- err
		command.Wait()
		close(pause.ended)
	}()
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		pause.Stop()
		return nil, fmt.Errorf("wait for a sandbox: %w", err)
	}
	return pause, nil
}

// Ended is closed when the sandbox has ended.
func (p *Pause) Ended() <-chan struct{} { return p.ended }

// Stop ends the sandbox.
func (p *Pause) Stop() {
	p.command.Process.Kill()
	<-p.ended
}

// Exit is how a process ended.
type Exit struct {
	Code   int
	Signal int
	At     time.Time
}

// Process is a container's first process.
type Process struct {
	PID     int
	Started time.Time
	command *exec.Cmd
	done    chan struct{}
	exit    Exit
}

// StartError says that a container's command did not come to run.
type StartError struct{ Cause string }

func (e *StartError) Error() string { return e.Cause }

// StartContainer starts a container and waits until its command runs. What it writes goes to out and err.
func (s *Spawner) StartContainer(ctx context.Context, spec *Container, out, err io.Writer) (*Process, error) {
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	text, problem := json.Marshal(spec)
	if problem != nil {
		return nil, problem
	}
	specRead, specWrite, problem := os.Pipe()
	if problem != nil {
		return nil, problem
	}
	defer specRead.Close()
	errorRead, errorWrite, problem := os.Pipe()
	if problem != nil {
		specWrite.Close()
		return nil, problem
	}
	defer errorRead.Close()
	command := exec.Command("/proc/self/exe", ContainerArgument)
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Setsid: true}
	command.ExtraFiles = []*os.File{specRead, errorWrite}
	command.Stdout, command.Stderr = out, err
	// Output that a process leaves behind with a child of another container's cannot hold the end up.
	command.WaitDelay = 2 * time.Second
	problem = s.start(command)
	errorWrite.Close()
	if problem != nil {
		specWrite.Close()
		return nil, fmt.Errorf("start a container: %w", problem)
	}
	process := &Process{PID: command.Process.Pid, Started: time.Now(), command: command, done: make(chan struct{})}
	go process.wait()
	go func() {
		specWrite.Write(text)
		specWrite.Close()
	}()
	return process, process.running(ctx, errorRead)
}

// running waits for the end of the error file, which closes when the command runs.
func (p *Process) running(ctx context.Context, failures io.Reader) error {
	answer := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(io.LimitReader(failures, 4096))
		answer <- string(text)
	}()
	select {
	case text := <-answer:
		if text == "" {
			return nil
		}
		<-p.done
		return &StartError{text}
	case <-ctx.Done():
		p.Signal(unix.SIGKILL)
		<-p.done
		return &StartError{fmt.Sprintf("the container was not put together in %s", startDeadline)}
	}
}

func (p *Process) wait() {
	err := p.command.Wait()
	p.exit.At = time.Now()
	if state := p.command.ProcessState; state != nil {
		if status, known := state.Sys().(syscall.WaitStatus); known && status.Signaled() {
			p.exit.Signal = int(status.Signal())
			p.exit.Code = 128 + p.exit.Signal
		} else {
			p.exit.Code = state.ExitCode()
		}
	} else if err != nil {
		p.exit.Code = 128
	}
	close(p.done)
}

// Done is closed when the process and with it all others of its container have ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit is how it ended, once Done is closed.
func (p *Process) Exit() Exit {
	<-p.done
	return p.exit
}

// Signal sends a signal to the first process; that it has ended is no error.
func (p *Process) Signal(signal syscall.Signal) error {
	if err := p.command.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}
