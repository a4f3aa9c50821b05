// prometheus-rules: reads the file of rules on standard input as Prometheus does at its start: fields, names,
// expressions, durations and templates. Prints what the expressions ask for, one metric a line with the labels that
// they name of it; says what is wrong where something is, and then ends with 1.
package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

func main() {
	promql := parser.NewParser(parser.Options{})
	content, err := io.ReadAll(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	groups, errs := rulefmt.Parse(content, false, model.UTF8Validation, promql, slog.Default())
	if len(errs) > 0 {
		for _, err := range errs {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			expression, err := promql.ParseExpr(rule.Expr)
			if err != nil {
				panic(err) // it was parsed before
			}
			parser.Inspect(expression, printSelector)
		}
	}
}

// printSelector prints a selector with the labels that it, or an aggregation around it, names.
func printSelector(node parser.Node, around []parser.Node) error {
	selector, ok := node.(*parser.VectorSelector)
	if !ok {
		return nil
	}
	labels := []string{}
	for _, matcher := range selector.LabelMatchers {
		if matcher.Name != model.MetricNameLabel {
			labels = append(labels, matcher.Name)
		}
	}
	for _, outer := range around {
		if aggregation, ok := outer.(*parser.AggregateExpr); ok {
			labels = append(labels, aggregation.Grouping...)
		}
	}
	slices.Sort(labels)
	fmt.Println(selector.Name, strings.Join(slices.Compact(labels), ","))
	return nil
}
