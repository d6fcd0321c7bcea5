//! A Swarm as a picture: Mermaid, Graphviz' dot, or SVG by a layout of its own, which needs nothing beside it.

use std::fmt::Write as _;

use crate::name::StageName;
use crate::swarm::{InputSource, Join, Stage, Swarm};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Picture {
    Mermaid,
    Dot,
    Svg,
}

/// The same Swarm gives the same text, so that a picture can lie beside its manifest in version control.
#[must_use]
pub fn draw(swarm: &Swarm, picture: Picture) -> String {
    let drawing = Drawing::of(swarm);
    match picture {
        Picture::Mermaid => drawing.mermaid(),
        Picture::Dot => drawing.dot(swarm.name.as_str()),
        Picture::Svg => drawing.svg(swarm.name.as_str()),
    }
}

struct Node {
    label: String,
    /// A second line.
    note: String,
    gateway: bool,
}

struct Edge {
    from: usize,
    to: usize,
    label: String,
    /// It closes a circle.
    back: bool,
}

struct Drawing {
    nodes: Vec<Node>,
    edges: Vec<Edge>,
}

impl Drawing {
    fn of(swarm: &Swarm) -> Self {
        let subjects = swarm.subjects();
        let mut nodes: Vec<Node> = subjects
            .iter()
            .map(|subject| Node {
                label: subject.to_string(),
                note: "gateway".to_owned(),
                gateway: true,
            })
            .collect();
        nodes.extend(swarm.stages.iter().map(|stage| Node {
            label: stage.name.to_string(),
            note: note(stage),
            gateway: false,
        }));
        let place = |name: &StageName| swarm.stages.iter().position(|s| s.name == *name);
        let mut edges = Vec::new();
        for (to, stage) in swarm.stages.iter().enumerate() {
            for input in &stage.inputs {
                let (from, output) = match &input.source {
                    InputSource::Gateway(subject) => (subjects.iter().position(|s| s == subject), None),
                    InputSource::Bee { stage, output } => (place(stage).map(|at| subjects.len() + at), output.as_ref()),
                };
                let Some(from) = from else { continue };
                let mut label = output.map(ToString::to_string).unwrap_or_default();
                label += &input.take.to_string();
                if let Some(laps) = input.laps {
                    label += &format!(" loop {laps}");
                }
                edges.push(Edge {
                    from,
                    to: subjects.len() + to,
                    label: label.trim().to_owned(),
                    back: input.laps.is_some(),
                });
            }
        }
        Self { nodes, edges }
    }

    fn mermaid(&self) -> String {
        let text = |text: &str| text.replace('&', "#amp;").replace('"', "#quot;").replace('<', "#lt;");
        let mut out = "flowchart LR\n".to_owned();
        for (i, node) in self.nodes.iter().enumerate() {
            let (open, close) = if node.gateway { ("([", "])") } else { ("[", "]") };
            let _ = writeln!(
                out,
                "  n{i}{open}\"{}<br/>{}\"{close}",
                text(&node.label),
                text(&node.note)
            );
        }
        for Edge { from, to, label, back } in &self.edges {
            let arrow = if *back { "-.->" } else { "-->" };
            let _ = match label.as_str() {
                "" => writeln!(out, "  n{from} {arrow} n{to}"),
                label => writeln!(out, "  n{from} {arrow}|\"{}\"| n{to}", text(label)),
            };
        }
        out
    }

    fn dot(&self, name: &str) -> String {
        let text = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let mut out = format!("digraph \"{}\" {{\n  rankdir=LR;\n  node [shape=box];\n", text(name));
        for (i, node) in self.nodes.iter().enumerate() {
            let shape = if node.gateway { ", shape=oval" } else { "" };
            let _ = writeln!(
                out,
                "  n{i} [label=\"{}\\n{}\"{shape}];",
                text(&node.label),
                text(&node.note)
            );
        }
        for Edge { from, to, label, back } in &self.edges {
            let style = if *back { ", style=dashed, constraint=false" } else { "" };
            let _ = match label.as_str() {
                "" => writeln!(out, "  n{from} -> n{to};"),
                label => writeln!(out, "  n{from} -> n{to} [label=\"{}\"{style}];", text(label)),
            };
        }
        out + "}\n"
    }

    /// How many edges lie before a node at most. Without loops inputs are no circle, so as many rounds as there are nodes settle it.
    fn layers(&self) -> Vec<usize> {
        let mut layers = vec![0; self.nodes.len()];
        for _ in 0..self.nodes.len() {
            let mut still = true;
            for edge in self.edges.iter().filter(|e| !e.back) {
                if layers[edge.to] <= layers[edge.from] {
                    layers[edge.to] = layers[edge.from] + 1;
                    still = false;
                }
            }
            if still {
                break;
            }
        }
        layers
    }

    /// The nodes of each layer from top to bottom, each near the middle of those that it reads from.
    fn rows(&self) -> Vec<Vec<usize>> {
        let layers = self.layers();
        let mut rows: Vec<Vec<usize>> = vec![Vec::new(); layers.iter().max().map_or(0, |last| last + 1)];
        for (node, layer) in layers.iter().enumerate() {
            rows[*layer].push(node);
        }
        let mut place = vec![0usize; self.nodes.len()];
        for row in &mut rows {
            row.sort_by_key(|node| {
                let from: Vec<usize> = self
                    .edges
                    .iter()
                    .filter(|e| e.to == *node && !e.back)
                    .map(|e| place[e.from])
                    .collect();
                // In thousandths, so that no float is needed.
                (from.iter().sum::<usize>() * 1_000)
                    .checked_div(from.len())
                    .unwrap_or(0)
            });
            for (at, node) in row.iter().enumerate() {
                place[*node] = at;
            }
        }
        rows
    }

    fn svg(&self, name: &str) -> String {
        const CHAR: usize = 8;
        const HIGH: usize = 44;
        const GAP: usize = 180;
        const ROW: usize = 84;
        const LOOP: usize = 24;
        let widths: Vec<usize> = self
            .nodes
            .iter()
            .map(|n| CHAR * n.label.chars().count().max(n.note.chars().count()) + 24)
            .collect();
        let rows = self.rows();
        let tallest = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut at = vec![(0, 0); self.nodes.len()];
        let mut x = 20;
        for row in &rows {
            let wide = row.iter().map(|n| widths[*n]).max().unwrap_or(0);
            let top = 20 + (tallest - row.len()) * ROW / 2;
            for (i, node) in row.iter().enumerate() {
                at[*node] = (x + (wide - widths[*node]) / 2, top + i * ROW);
            }
            x += wide + GAP;
        }
        // What goes back does so below everything else, each loop on a line of its own.
        let loops = self.edges.iter().filter(|e| e.back).count();
        let below = 20 + tallest * ROW;
        let (width, height) = (x.saturating_sub(GAP) + 20, below + loops * LOOP);
        let mut lines = (below..).step_by(LOOP);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             font-family=\"monospace\" font-size=\"13\">\n<title>{}</title>\n<defs><marker id=\"end\" viewBox=\"0 0 8 8\" refX=\"8\" \
             refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#666\"/></marker></defs>\n",
            xml(name)
        );
        for Edge { from, to, label, back } in &self.edges {
            let ((fx, fy), (tx, ty)) = (at[*from], at[*to]);
            if *back {
                let y = lines.next().unwrap_or(below);
                let (fx, tx) = (fx + widths[*from] * 2 / 3, tx + widths[*to] / 3);
                let (fy, ty) = (fy + HIGH, ty + HIGH);
                let _ = writeln!(
                    out,
                    "<path d=\"M{fx} {fy}V{y}H{tx}V{ty}\" fill=\"none\" stroke=\"#666\" stroke-dasharray=\"5 4\" \
                     marker-end=\"url(#end)\"><title>{}</title></path>\
                     <text x=\"{}\" y=\"{}\" text-anchor=\"middle\" font-size=\"10\" fill=\"#444\">{}</text>",
                    xml(label),
                    usize::midpoint(fx, tx),
                    y - 4,
                    xml(&short(label))
                );
                continue;
            }
            let (fx, fy, ty) = (fx + widths[*from], fy + HIGH / 2, ty + HIGH / 2);
            let middle = usize::midpoint(fx, tx);
            let _ = write!(
                out,
                "<path d=\"M{fx} {fy}C{middle} {fy} {middle} {ty} {tx} {ty}\" fill=\"none\" stroke=\"#666\" marker-end=\"url(#end)\">"
            );
            let _ = writeln!(out, "<title>{}</title></path>", xml(label));
            if !label.is_empty() {
                let y = usize::midpoint(fy, ty) - 4;
                let _ = writeln!(
                    out,
                    "<text x=\"{middle}\" y=\"{y}\" text-anchor=\"middle\" font-size=\"10\" fill=\"#444\">{}</text>",
                    xml(&short(label))
                );
            }
        }
        for ((node, (x, y)), width) in self.nodes.iter().zip(&at).zip(&widths) {
            let (round, fill) = if node.gateway {
                (HIGH / 2, "#e8f0fe")
            } else {
                (6, "#fff7e0")
            };
            let middle = x + width / 2;
            let _ = writeln!(
                out,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{HIGH}\" rx=\"{round}\" fill=\"{fill}\" stroke=\"#666\"/>\
                 <text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" font-weight=\"bold\">{}</text>\
                 <text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" font-size=\"11\">{}</text>",
                y + 19,
                xml(&node.label),
                y + 35,
                xml(&node.note)
            );
        }
        out + "</svg>\n"
    }
}

fn note(stage: &Stage) -> String {
    let mut out = if stage.bee.as_str() == stage.name.as_str() {
        stage.module.clone()
    } else {
        format!("{} of {}", stage.bee, stage.module)
    };
    match stage.join {
        Some(Join { missing, .. }) => out += &format!(", join, else {}", missing.as_str()),
        None if stage.state => out += ", state",
        None => {}
    }
    out
}

/// What fits between two boxes; the rest is in the tooltip.
fn short(label: &str) -> String {
    const CHARS: usize = 24;
    let mut out: String = label.chars().take(CHARS).collect();
    if label.chars().nth(CHARS).is_some() {
        out.push('…');
    }
    out
}

fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swarm() -> Swarm {
        crate::manifest::parse(
            "
name: votes
bees:
  - { name: words, module: m, input: { gateway: texts } }
  - { name: links, module: m, input: { gateway: texts, when: { header: x, is: '<\"&>' } } }
  - { name: vote, module: m, bee: sum, input: { join: [words, { bee: links, output: judged }], missing: partial } }
  - { name: keep, module: m, input: { bee: vote }, key: message, state: true }
",
        )
        .unwrap()
    }

    #[test]
    fn every_form_has_every_edge() {
        let (mermaid, dot) = (draw(&swarm(), Picture::Mermaid), draw(&swarm(), Picture::Dot));
        let part = "n1[\"words<br/>m\"]";
        assert!(
            mermaid.starts_with("flowchart LR\n") && mermaid.contains(part),
            "{mermaid}"
        );
        assert!(mermaid.contains("n0 -->|\"when header:x is #quot;#lt;"), "{mermaid}");
        assert!(mermaid.contains("n2 -->|\"judged\"| n3"), "{mermaid}");
        assert_eq!((mermaid.matches("-->").count(), dot.matches("->").count()), (5, 5));
        assert!(
            dot.contains("n3 [label=\"vote\\nsum of m, join, else partial\"]"),
            "{dot}"
        );
        assert!(dot.contains("is \\\"<"), "{dot}");
        let svg = draw(&swarm(), Picture::Svg);
        assert_eq!(
            (svg.matches("<rect").count(), svg.matches("marker-end").count()),
            (5, 5)
        );
        assert!(svg.contains("&quot;&lt;") && !svg.contains("\"<\\"), "{svg}");
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn a_loop_goes_back_and_moves_nothing() {
        let text = "
name: refine
bees:
  - { name: draft, module: m, input: [{ gateway: tasks }, { bee: judge, output: poor, loop: 5 }] }
  - { name: judge, module: m, input: { bee: draft } }
";
        let swarm = crate::manifest::parse(text).unwrap();
        let drawing = Drawing::of(&swarm);
        assert_eq!(drawing.layers(), [0, 1, 2]);
        let (mermaid, dot) = (draw(&swarm, Picture::Mermaid), draw(&swarm, Picture::Dot));
        assert!(mermaid.contains("n2 -.->|\"poor loop 5\"| n1"), "{mermaid}");
        assert!(
            dot.contains("n2 -> n1 [label=\"poor loop 5\", style=dashed, constraint=false]"),
            "{dot}"
        );
        let svg = draw(&swarm, Picture::Svg);
        assert_eq!(
            (
                svg.matches("marker-end").count(),
                svg.matches("stroke-dasharray").count()
            ),
            (3, 1)
        );
        // Within the picture.
        assert!(svg.contains("height=\"128\"") && svg.contains("V104H"), "{svg}");
    }

    #[test]
    fn what_reads_from_another_stands_to_its_right() {
        let drawing = Drawing::of(&swarm());
        let layers = drawing.layers();
        assert_eq!(layers, [0, 1, 1, 2, 3]);
        assert!(drawing.edges.iter().all(|e| layers[e.from] < layers[e.to]));
        assert_eq!(drawing.rows().concat().len(), drawing.nodes.len());
    }
}
