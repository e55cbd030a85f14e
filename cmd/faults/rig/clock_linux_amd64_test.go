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

// A process whose wall clock is stepped sees another time, and what it measures
// stays as it was; with the other clock it is the other way round.
func TestClocks(t *testing.T) {
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
	var aged time.Duration
	for _, step := range []struct{ wall, measured time.Duration }{
		{}, {wall: 5 * time.Minute}, {wall: -time.Hour}, {wall: 48 * time.Hour}, {}, {measured: time.Hour}, {wall: time.Hour, measured: time.Hour},
	} {
		aged += step.measured
		c := clocks{int64(step.wall / time.Second), int64(aged / time.Second)}
		if err := c.set(cmd.Process.Pid); err != nil {
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
		if off := time.Unix(seconds, 0).Sub(time.Now().Add(step.wall)); off.Abs() > time.Minute {
			t.Errorf("%+v: the clock is off by %v more", step, off)
		}
		if s, err := strconv.ParseFloat(measured, 64); err != nil || s < step.measured.Seconds() || s > step.measured.Seconds()+60 {
			t.Errorf("%+v: it measures %s s", step, measured)
		}
	}
}
