package drill

import "syscall"

// dieWithParent makes the kernel end a node when the program that started it ends, however that happens.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
