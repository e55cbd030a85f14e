// Package rig runs a mesh of real flotilla processes on one machine and hurts
// it: it knows how to cut a line, a process, a disk or a clock, and nothing of
// what a registry is for.
//
// Every node has a network namespace of its own, on a line to a router that is
// this process's namespace, and a data folder on a file system of its own, an
// ext4 in a file. Clients sit at the router, so that no cut between nodes keeps
// them from any node. All of it lives in namespaces of this process (Enter):
// when it ends, however it ends, the kernel ends the nodes and takes back mounts,
// loop devices and interfaces. Only files in the work folder stay.
//
//	router 10.77.i.1 ---- veth ---- 10.77.i.2 node i, data on <dir>/n<i>.img
//
// What the machine cannot do is known before it is tried (Lacks).
package rig
