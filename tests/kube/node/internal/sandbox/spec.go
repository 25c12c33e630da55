// Package sandbox runs processes in namespaces of their own: one sandbox a pod, which holds its network, and in it one
// container after another, each with its own mounts and process ids.
package sandbox

import "crescendo.dev/kube-node/internal/volumes"

// Container is what the first process of a container is told.
type Container struct {
	// Root is an empty folder of this container's own, for its view of the host's files and what it writes over them.
	Root string
	// Sandbox is the process whose network, host name and message queues the container shares.
	Sandbox int
	// Programs are folders of the host that its user has to reach, beside the mounts.
	Programs []string
	// Hidden are folders of the host that the container sees as empty.
	Hidden []string
	Mounts []volumes.Mount
	// ReadOnly makes all but the mounts read-only.
	ReadOnly bool
	Command  []string
	Env      []string
	// WorkingDir is made if it is not there.
	WorkingDir string
	User       User
}

// User is whose rights a process has.
type User struct {
	ID     int
	Group  int
	Groups []int
	// Capabilities are those that a process of root keeps, by number.
	Capabilities []int
	// NoNewPrivileges keeps programs from having more rights than who starts them.
	NoNewPrivileges bool
}

// What the first argument of this program is when it starts itself as something else.
const (
	PauseArgument     = "sandbox-pause"
	ContainerArgument = "sandbox-container"
)
