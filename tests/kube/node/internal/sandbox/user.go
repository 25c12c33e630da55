package sandbox

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// capabilities by the names that a security context has for them.
var capabilities = map[string]int{
	"AUDIT_CONTROL": unix.CAP_AUDIT_CONTROL, "AUDIT_READ": unix.CAP_AUDIT_READ, "AUDIT_WRITE": unix.CAP_AUDIT_WRITE,
	"BLOCK_SUSPEND": unix.CAP_BLOCK_SUSPEND, "BPF": unix.CAP_BPF, "CHECKPOINT_RESTORE": unix.CAP_CHECKPOINT_RESTORE,
	"CHOWN": unix.CAP_CHOWN, "DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
	"FOWNER": unix.CAP_FOWNER, "FSETID": unix.CAP_FSETID, "IPC_LOCK": unix.CAP_IPC_LOCK, "IPC_OWNER": unix.CAP_IPC_OWNER,
	"KILL": unix.CAP_KILL, "LEASE": unix.CAP_LEASE, "LINUX_IMMUTABLE": unix.CAP_LINUX_IMMUTABLE,
	"MAC_ADMIN": unix.CAP_MAC_ADMIN, "MAC_OVERRIDE": unix.CAP_MAC_OVERRIDE, "MKNOD": unix.CAP_MKNOD,
	"NET_ADMIN": unix.CAP_NET_ADMIN, "NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE, "NET_BROADCAST": unix.CAP_NET_BROADCAST,
	"NET_RAW": unix.CAP_NET_RAW, "PERFMON": unix.CAP_PERFMON, "SETFCAP": unix.CAP_SETFCAP, "SETGID": unix.CAP_SETGID,
	"SETPCAP": unix.CAP_SETPCAP, "SETUID": unix.CAP_SETUID, "SYSLOG": unix.CAP_SYSLOG, "SYS_ADMIN": unix.CAP_SYS_ADMIN,
	"SYS_BOOT": unix.CAP_SYS_BOOT, "SYS_CHROOT": unix.CAP_SYS_CHROOT, "SYS_MODULE": unix.CAP_SYS_MODULE,
	"SYS_NICE": unix.CAP_SYS_NICE, "SYS_PACCT": unix.CAP_SYS_PACCT, "SYS_PTRACE": unix.CAP_SYS_PTRACE,
	"SYS_RAWIO": unix.CAP_SYS_RAWIO, "SYS_RESOURCE": unix.CAP_SYS_RESOURCE, "SYS_TIME": unix.CAP_SYS_TIME,
	"SYS_TTY_CONFIG": unix.CAP_SYS_TTY_CONFIG, "WAKE_ALARM": unix.CAP_WAKE_ALARM,
}

// usual are the capabilities that container runtimes give to root.
var usual = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP",
	"SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// UserOf is the user that a container's security context, over its pod's, asks for. Images have no user here: it is root
// unless one is asked for.
func UserOf(pod *corev1.PodSecurityContext, own *corev1.SecurityContext) (User, error) {
	if pod == nil {
		pod = &corev1.PodSecurityContext{}
	}
	if own == nil {
		own = &corev1.SecurityContext{}
	}
	user := User{ID: int(first(own.RunAsUser, pod.RunAsUser)), Group: int(first(own.RunAsGroup, pod.RunAsGroup))}
	if nonRoot := firstSet(own.RunAsNonRoot, pod.RunAsNonRoot); nonRoot && user.ID == 0 {
		return User{}, fmt.Errorf("container has runAsNonRoot and would run as root: set runAsUser, images have none here")
	}
	if pod.FSGroup != nil {
		user.Groups = append(user.Groups, int(*pod.FSGroup))
	}
	for _, group := range pod.SupplementalGroups {
		user.Groups = append(user.Groups, int(group))
	}
	user.NoNewPrivileges = own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation
	kept, err := keptCapabilities(own)
	if err != nil {
		return User{}, err
	}
	user.Capabilities = kept
	return user, nil
}

func first(values ...*int64) int64 {
	for _, value := range values {
		if value != nil {
			return *value
		}
	}
	return 0
}

func firstSet(values ...*bool) bool {
	for _, value := range values {
		if value != nil {
			return *value
		}
	}
	return false
}

func keptCapabilities(own *corev1.SecurityContext) ([]int, error) {
	kept := map[string]bool{}
	for _, name := range usual {
		kept[name] = true
	}
	if own.Privileged != nil && *own.Privileged {
		for name := range capabilities {
			kept[name] = true
		}
	}
	if own.Capabilities != nil {
		for _, dropped := range own.Capabilities.Drop {
			if dropped == "ALL" {
				clear(kept)
			}
			delete(kept, strings.TrimPrefix(string(dropped), "CAP_"))
		}
		for _, added := range own.Capabilities.Add {
			kept[strings.TrimPrefix(string(added), "CAP_")] = true
		}
	}
	var numbers []int
	for name := range kept {
		number, found := capabilities[name]
		if !found {
			return nil, fmt.Errorf("capabilities: there is no %q", name)
		}
		numbers = append(numbers, number)
	}
	return numbers, nil
}

// become takes the user's rights for this thread, which runs its program next.
func become(user User) error {
	if err := keepOnly(user.Capabilities); err != nil {
		return err
	}
	groups := make([]int, 0, len(user.Groups)+1)
	groups = append(append(groups, user.Group), user.Groups...)
	if err := unix.Setgroups(groups); err != nil {
		return fmt.Errorf("set groups: %w", err)
	}
	if err := unix.Setresgid(user.Group, user.Group, user.Group); err != nil {
		return fmt.Errorf("set group: %w", err)
	}
	if err := unix.Setresuid(user.ID, user.ID, user.ID); err != nil {
		return fmt.Errorf("set user: %w", err)
	}
	if user.ID == 0 {
		if err := limitTo(user.Capabilities); err != nil {
			return err
		}
	}
	if user.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no new privileges: %w", err)
		}
	}
	return nil
}

// keepOnly takes every other capability out of what programs can ever have.
func keepOnly(kept []int) error {
	wanted := map[int]bool{}
	for _, number := range kept {
		wanted[number] = true
	}
	for number := 0; number <= unix.CAP_LAST_CAP; number++ {
		if held, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(number), 0, 0, 0); wanted[number] || err != nil || held == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(number), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", number, err)
		}
	}
	return nil
}

// limitTo keeps these capabilities alone, as far as this process has them.
func limitTo(kept []int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("get capabilities: %w", err)
	}
	var mask [2]uint32
	for _, number := range kept {
		mask[number/32] |= 1 << (number % 32)
	}
	for i := range data {
		data[i].Permitted &= mask[i]
		data[i].Effective = data[i].Permitted
		data[i].Inheritable = 0
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}
