package bench

import (
	"slices"
	"time"
)

// median is 0 for no values.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// spread is half the range in percent of the median.
func spread(values []float64) float64 {
	m := median(values)
	if m == 0 {
		return 0
	}
	return (slices.Max(values) - slices.Min(values)) / 2 / m * 100
}

// pairedRatio is the median over the rounds of how many times better a target
// did than the first one in the same round.
func pairedRatio(u unit, samples, first []Sample) float64 {
	var ratios []float64
	for i := range min(len(samples), len(first)) {
		a, b := samples[i].Value, first[i].Value
		if u.lowerIsBetter() {
			a, b = b, a
		}
		if b > 0 {
			ratios = append(ratios, a/b)
		}
	}
	return median(ratios)
}

// percentile of durations in milliseconds, by the nearest rank; it sorts them.
func percentile(d []time.Duration, p int) float64 {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	rank := (len(d)*p + 99) / 100
	return d[max(rank, 1)-1].Seconds() * 1000
}
