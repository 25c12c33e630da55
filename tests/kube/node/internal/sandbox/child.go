package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	specFile  = 3
	errorFile = 4
)

// RunPause holds a sandbox's namespaces until its parent ends it or ends itself.
func RunPause(hostname string) error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	// Whoever waits for the sandbox reads a line.
	if _, err := fmt.Println("ready"); err != nil {
		return err
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGTERM)
	<-ended
	return nil
}

// RunContainer is the first process of a container: it puts the container together and becomes its command. It returns only
// if that failed, and has told its parent then.
func RunContainer() {
	runtime.LockOSThread()
	failures := os.NewFile(errorFile, "errors")
	err := becomeContainer()
	// The parent reads this in place of the end of the file, which it sees when the command runs.
	fmt.Fprint(failures, err)
	os.Exit(128)
}

func becomeContainer() error {
	unix.CloseOnExec(errorFile)
	in := os.NewFile(specFile, "spec")
	text, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("read what to run: %w", err)
	}
	in.Close()
	var spec Container
	if err := json.Unmarshal(text, &spec); err != nil {
		return fmt.Errorf("read what to run: %w", err)
	}
	for _, kind := range []string{"net", "uts", "ipc"} {
		if err := join(spec.Sandbox, kind); err != nil {
			return err
		}
	}
	if err := enterTree(&spec); err != nil {
		return err
	}
	unix.Umask(0o022)
	if spec.WorkingDir != "" {
		if err := unix.Chdir(spec.WorkingDir); err != nil {
			return fmt.Errorf("workingDir %s: %w", spec.WorkingDir, err)
		}
	}
	if err := become(spec.User); err != nil {
		return err
	}
	// After the change of user, which clears it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("end with the node: %w", err)
	}
	program, err := FindProgram(spec.Command[0], spec.Env)
	if err != nil {
		return err
	}
	return fmt.Errorf("exec %s: %w", program, unix.Exec(program, spec.Command, spec.Env))
}

func join(process int, kind string) error {
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", process, kind))
	if err != nil {
		return fmt.Errorf("join the sandbox: %w", err)
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), 0); err != nil {
		return fmt.Errorf("join the sandbox's %s: %w", kind, err)
	}
	return nil
}

// FindProgram looks for a program in the folders of PATH of an environment, as execvp does.
func FindProgram(name string, environment []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, folder := range filepath.SplitList(variable(environment, "PATH")) {
		path := filepath.Join(folder, name)
		info, err := os.Stat(path)
		if err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return path, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, fs.ErrPermission) {
			return "", fmt.Errorf("exec: %q: %w", name, err)
		}
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}

func variable(environment []string, name string) string {
	for _, entry := range environment {
		if value, found := strings.CutPrefix(entry, name+"="); found {
			return value
		}
	}
	return ""
}
