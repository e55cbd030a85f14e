package oci_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

const (
	hex64  = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	hex128 = "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"
)

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"a":                           true,
		"library/alpine":              true,
		"a/b/c/d/e/f":                 true,
		"a.b_c__d-e--f---g":           true,
		"0/1":                         true,
		"blobs/uploads/manifests":     true,
		strings.Repeat("a", 255):      true,
		strings.Repeat("a", 256):      false,
		"":                            false,
		"A":                           false,
		"/a":                          false,
		"a/":                          false,
		"a//b":                        false,
		"a/./b":                       false,
		"a/../b":                      false,
		"..":                          false,
		".a":                          false,
		"a.":                          false,
		"a..b":                        false,
		"a___b":                       false,
		"a_-b":                        false,
		"-a":                          false,
		"_catalog":                    false,
		"a b":                         false,
		"a\x00b":                      false,
		"a\n":                         false,
		"a:b":                         false,
		"a%2fb":                       false,
		"ä":                           false,
		"a\\b":                        false,
		"registry.example.org:5000/a": false,
	} {
		t.Run(fmt.Sprintf("%.40q", name), func(t *testing.T) {
			switch err := oci.CheckName(name); {
			case ok && err != nil:
				t.Error(err)
			case !ok && !errors.Is(err, oci.ErrNameInvalid):
				t.Errorf("got %v, want ErrNameInvalid", err)
			}
		})
	}
}

func TestParseReference(t *testing.T) {
	for s, want := range map[string]struct {
		ref oci.Reference
		err error
	}{
		"latest":                 {ref: oci.Reference{Tag: "latest"}},
		"_":                      {ref: oci.Reference{Tag: "_"}},
		"V1.2.3-rc_1":            {ref: oci.Reference{Tag: "V1.2.3-rc_1"}},
		strings.Repeat("t", 128): {ref: oci.Reference{Tag: strings.Repeat("t", 128)}},
		"sha256:" + hex64:        {ref: oci.Reference{Digest: digest.Digest("sha256:" + hex64)}},
		"sha512:" + hex128:       {ref: oci.Reference{Digest: digest.Digest("sha512:" + hex128)}},

		"":                                  {err: oci.ErrTagInvalid},
		".hidden":                           {err: oci.ErrTagInvalid},
		"-x":                                {err: oci.ErrTagInvalid},
		"..":                                {err: oci.ErrTagInvalid},
		"a/b":                               {err: oci.ErrTagInvalid},
		"a\n":                               {err: oci.ErrTagInvalid},
		strings.Repeat("t", 129):            {err: oci.ErrTagInvalid},
		"sha256:baddigeststring":            {err: oci.ErrDigestInvalid},
		"sha256:" + strings.ToUpper(hex64):  {err: oci.ErrDigestInvalid},
		"sha256:" + hex64 + "0":             {err: oci.ErrDigestInvalid},
		"sha256:" + hex128:                  {err: oci.ErrDigestInvalid},
		"sha384:" + hex128[:96]:             {err: oci.ErrDigestInvalid},
		"md5:d41d8cd98f00b204e9800998ecf84": {err: oci.ErrDigestInvalid},
		"sha256:../../../etc/passwd":        {err: oci.ErrDigestInvalid},
		":":                                 {err: oci.ErrDigestInvalid},
	} {
		t.Run(fmt.Sprintf("%.40q", s), func(t *testing.T) {
			ref, err := oci.ParseReference(s)
			if !errors.Is(err, want.err) {
				t.Fatalf("got error %v, want %v", err, want.err)
			}
			if ref != want.ref {
				t.Errorf("got %+v, want %+v", ref, want.ref)
			}
			if err == nil && ref.String() != s {
				t.Errorf("String() = %q, want %q", ref, s)
			}
		})
	}
}

func TestParseAlgorithm(t *testing.T) {
	for s, want := range map[string]digest.Algorithm{
		"": digest.SHA256, "sha256": digest.SHA256, "sha512": digest.SHA512,
		"sha384": "", "SHA256": "", "md5": "", "sha256 ": "",
	} {
		got, err := oci.ParseAlgorithm(s)
		if got != want || (want == "") != errors.Is(err, oci.ErrDigestInvalid) {
			t.Errorf("ParseAlgorithm(%q) = %q, %v; want %q", s, got, err, want)
		}
	}
}

// TestErrorAcrossNodes: what one node returns, another can compare and a client
// can read, and nothing of its cause crosses.
func TestErrorAcrossNodes(t *testing.T) {
	secret := errors.New("/var/lib/flotilla: no space left")
	sent := fmt.Errorf("finish upload: %w", oci.ErrDiskFull.Because("2 MiB free").WithDetail("d").Wrap(secret))
	if !errors.Is(sent, secret) || !strings.Contains(sent.Error(), "no space left") {
		t.Fatalf("the cause is lost at home: %v", sent)
	}
	wire := oci.EncodeError(sent)
	if strings.Contains(string(wire), "/var/lib") {
		t.Errorf("the cause crosses: %s", wire)
	}
	got := oci.DecodeError(wire)
	if !errors.Is(got, oci.ErrDiskFull) || errors.Is(got, oci.ErrDenied) {
		t.Errorf("got %v of another kind", got)
	}
	var e *oci.Error
	if !errors.As(got, &e) || e.Code != "DENIED" || e.Detail != "d" || !strings.HasSuffix(e.Message, "2 MiB free") {
		t.Errorf("got %+v", got)
	}
	if oci.ErrDiskFull.Detail != nil || strings.Contains(oci.ErrDiskFull.Message, "MiB") {
		t.Error("the vocabulary itself was changed")
	}
	for _, odd := range []string{"", "{}", "<html>", `{"kind":5}`, "null"} {
		if err := oci.DecodeError([]byte(odd)); !errors.Is(err, oci.ErrUnavailable) {
			t.Errorf("DecodeError(%q) = %v", odd, err)
		}
	}
	if err := oci.DecodeError(oci.EncodeError(errors.New("boom"))); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("an error of no kind arrives as %v", err)
	}
	if err := oci.DecodeError(oci.EncodeError(oci.ErrDenied.WithDetail(func() {}))); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("a detail that is no JSON breaks the error: %v", err)
	}
}

func TestRequestID(t *testing.T) {
	ctx := context.Background()
	if id := oci.RequestID(ctx); id != "" {
		t.Errorf("got %q from an unmarked context", id)
	}
	if id := oci.RequestID(oci.WithRequestID(ctx, "r1")); id != "r1" {
		t.Errorf("got %q, want r1", id)
	}
}

func FuzzCheckName(f *testing.F) {
	for _, s := range []string{"a", "a/b", "a..b", "a/../b", "A", "a__b--c.d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if oci.CheckName(s) != nil {
			return
		}
		// What every user of a checked name relies on.
		if len(s) > 255 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789._-/") != "" ||
			strings.Contains(s, "..") || strings.Contains(s, "//") || strings.Trim(s, "/.-_") != s {
			t.Errorf("%q was taken", s)
		}
	})
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"latest", "sha256:" + hex64, "sha512:" + hex128, "sha384:" + hex128[:96], "..", "a:b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := oci.ParseReference(s)
		if err != nil {
			if ref != (oci.Reference{}) {
				t.Errorf("%q: %+v beside %v", s, ref, err)
			}
			return
		}
		if ref.String() != s || (ref.Tag == "") == (ref.Digest == "") {
			t.Errorf("%q was read as %+v", s, ref)
		}
		if ref.Tag != "" && oci.CheckTag(ref.Tag) != nil || strings.ContainsAny(s, "/\\\x00") || strings.HasPrefix(s, ".") {
			t.Errorf("%q was taken", s)
		}
	})
}
