package rig

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if os.Getenv("FLOTILLA_TEST_CLOCK") != "" {
		tellTime()
		return
	}
	os.Exit(m.Run())
}

// tellTime answers each line with the wall clock, and the time by the monotonic
// one since the line before.
func tellTime() {
	last := time.Now()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		now := time.Now()
		fmt.Println(now.Unix(), now.Sub(last).Seconds())
		last = now
	}
}

// A process whose clock is stepped sees another wall clock; what it measures
// stays as it was.
func TestStepClock(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FLOTILLA_TEST_CLOCK=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	answers := bufio.NewScanner(out)
	for _, ahead := range []time.Duration{0, 5 * time.Minute, -time.Hour, 48 * time.Hour, 0} {
		if err := stepClock(cmd.Process.Pid, ahead); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(in, "\n"); err != nil || !answers.Scan() {
			t.Fatal("no answer", err)
		}
		wall, measured, _ := strings.Cut(answers.Text(), " ")
		seconds, err := strconv.ParseInt(wall, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if off := time.Unix(seconds, 0).Sub(time.Now().Add(ahead)); off.Abs() > time.Minute {
			t.Errorf("stepped by %v, the clock is off by %v more", ahead, off)
		}
		if s, err := strconv.ParseFloat(measured, 64); err != nil || s < 0 || s > 60 {
			t.Errorf("stepped by %v, it measures %s s", ahead, measured)
		}
	}
}
