package sandbox

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Command is a further program in a container that runs.
type Command struct {
	Line       []string
	Env        []string
	WorkingDir string
	User       User
	// Terminal gives the program a terminal of the container.
	Terminal bool
}

// Enter prepares a program in the container of a process, and start starts it there. With a terminal it gives the side of it
// that is to be read, written and closed.
func Enter(process int, spec Command) (command *exec.Cmd, start func() (*os.File, error)) {
	command = &exec.Cmd{Args: spec.Line, Env: spec.Env, Dir: spec.WorkingDir}
	groups := []uint32{uint32(spec.User.Group)}
	for _, group := range spec.User.Groups {
		groups = append(groups, uint32(group))
	}
	command.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Setctty:    spec.Terminal,
		Credential: &syscall.Credential{Uid: uint32(spec.User.ID), Gid: uint32(spec.User.Group), Groups: groups},
	}
	if command.Dir == "" {
		command.Dir = "/"
	}
	return command, func() (own *os.File, err error) {
		err = inside(process, unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWNET|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC, func() error {
			program, err := FindProgram(spec.Line[0], spec.Env)
			if err != nil {
				return err
			}
			command.Path = program
			if err := limitBounds(spec.User); err != nil {
				return err
			}
			if !spec.Terminal {
				return command.Start()
			}
			own, err = startOnTerminal(command, spec.User)
			return err
		})
		return own, err
	}
}

func startOnTerminal(command *exec.Cmd, user User) (*os.File, error) {
	program, own, err := openTerminal()
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	defer program.Close()
	command.Stdin, command.Stdout, command.Stderr = program, program, program
	err = program.Chown(user.ID, user.Group)
	if err == nil {
		err = command.Start()
	}
	if err != nil {
		own.Close()
		return nil, err
	}
	return own, nil
}

// limitBounds takes from this thread, and so from what it starts, what the user must not have.
func limitBounds(user User) error {
	if err := keepOnly(user.Capabilities); err != nil {
		return err
	}
	if user.NoNewPrivileges {
		return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	return nil
}

// inside runs an action on a thread that is in a process's namespaces; the thread ends with it.
func inside(process int, namespaces int, action func() error) error {
	handle, err := unix.PidfdOpen(process, 0)
	if err != nil {
		return fmt.Errorf("the container does not run: %w", err)
	}
	defer unix.Close(handle)
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime ends a thread that is not as it was.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- err
			return
		}
		if err := unix.Setns(handle, namespaces); err != nil {
			done <- fmt.Errorf("enter the container: %w", err)
			return
		}
		done <- action()
	}()
	return <-done
}

// Dial connects to an address in a process's network.
func Dial(ctx context.Context, process int, network, address string) (net.Conn, error) {
	var connection net.Conn
	err := inside(process, unix.CLONE_NEWNET, func() (err error) {
		connection, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return connection, err
}

// openTerminal makes a terminal: the side that a program gets, and the one to read and write.
func openTerminal() (program, own *os.File, err error) {
	own, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	number, err := unix.IoctlGetInt(int(own.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(own.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		own.Close()
		return nil, nil, err
	}
	return program, own, nil
}

// Resize tells a terminal its size.
func Resize(terminal *os.File, width, height uint16) error {
	return unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
}
