package disk

// Size returns the size in bytes of the file system that holds path, so that
// a Reserve can be chosen to fit it.
func Size(path string) (uint64, error) {
	_, total, err := space(path)
	return total, err
}
