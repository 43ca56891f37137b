//! Bounds of statements. Planning cannot be interrupted and takes memory that no pool counts, so what would take long is refused
//! before it begins.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::parser::{CopyToSource, CopyToStatement, DFParser, Statement};
use datafusion::sql::sqlparser::ast::{ObjectName, ObjectNamePart, Query, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

/// Operators. What plans descends as deep as there are operators in a row, and takes the square of their number as long.
const OPERATORS: usize = 2_000;

/// Brackets in brackets. The parser gives up at fifty levels of anything, and where `CAST(` and the like are among them, it tries
/// what else they could be at each level: two levels more take twice as long.
const NESTED: usize = 40;

/// Joins, after common table expressions are put in where they are named: few lines can name each other a billion times.
const JOINS: usize = 100;

/// Tables that are read.
const RELATIONS: usize = 2_000;

/// Scans, filters, projections and so on, counted alike. Five hundred models in one UNION ALL are a quarter of it.
pub const NODES: usize = 10_000;

/// Why a statement is not planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("statement: {0}")]
pub struct TooLong(String);

impl From<TooLong> for DataFusionError {
    fn from(error: TooLong) -> Self {
        Self::External(Box::new(error))
    }
}

/// The statements of a text, all within bounds.
///
/// # Errors
/// [`TooLong`], and what the parser says.
pub fn parse(sql: &str) -> Result<VecDeque<Statement>> {
    check_text(sql)?;
    let statements = DFParser::parse_sql(sql)?;
    statements.iter().try_for_each(check_statement)?;
    Ok(statements)
}

/// The plan of a text that is one statement, within bounds.
///
/// # Errors
/// [`TooLong`], and what the parser and the planner say.
pub async fn plan(state: &SessionState, sql: &str) -> Result<LogicalPlan> {
    let statement = parse_one(state, sql)?;
    let plan = state.statement_to_plan(statement).await?;
    check_plan(&plan)?;
    Ok(plan)
}

/// The statement of a text that is one, within bounds.
///
/// # Errors
/// [`TooLong`], and what the parser says.
pub fn parse_one(state: &SessionState, sql: &str) -> Result<Statement> {
    check_text(sql)?;
    let statement = state.sql_to_statement(sql, &state.config_options().sql_parser.dialect)?;
    check_statement(&statement)?;
    Ok(statement)
}

/// Refuses a text of which a statement would be planned for too long.
fn check_text(sql: &str) -> Result<(), TooLong> {
    // One that cannot be cut into tokens is refused by the parser, with a better message.
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().unwrap_or_default();
    for statement in tokens.split(|token| *token == Token::SemiColon) {
        let nested = nested(statement);
        if nested > NESTED {
            return Err(TooLong(format!("it nests {nested} brackets, {NESTED} are allowed; name parts of it by WITH")));
        }
        let operators = statement.iter().filter(|token| is_operator(token)).count();
        if operators > OPERATORS {
            return Err(TooLong(format!(
                "it has {operators} operators, {OPERATORS} are allowed; lists of values are IN or a join"
            )));
        }
        let queries = statement.iter().filter(|token| is_select(token)).count();
        if queries > RELATIONS {
            return Err(TooLong(format!(
                "it has {queries} queries, {RELATIONS} are allowed; rows are VALUES or a table"
            )));
        }
    }
    Ok(())
}

/// How deep brackets are in each other, those of types such as `ARRAY<INT>` too. The parser descends into INTERVAL as into one, and
/// counts neither that nor types.
fn nested(tokens: &[Token]) -> usize {
    let (mut open, mut of_types, mut intervals, mut deepest) = (0_usize, 0_usize, 0, 0);
    let mut before = None;
    for token in tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_))) {
        let keyword = keyword(token);
        intervals = if keyword == Some(Keyword::INTERVAL) { intervals + 1 } else { 0 };
        let closed = match token {
            Token::Gt => of_types.min(1),
            Token::ShiftRight => of_types.min(2),
            _ => 0,
        };
        (open, of_types) = (open.saturating_sub(closed), of_types - closed);
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => open += 1,
            Token::RParen | Token::RBracket | Token::RBrace => open = open.saturating_sub(1),
            Token::Lt if matches!(before, Some(Keyword::ARRAY | Keyword::STRUCT | Keyword::MAP)) => {
                (open, of_types) = (open + 1, of_types + 1);
            }
            _ => {}
        }
        deepest = deepest.max(open + intervals);
        before = keyword;
    }
    deepest
}

fn keyword(token: &Token) -> Option<Keyword> {
    match token {
        Token::Word(word) if word.quote_style.is_none() => Some(word.keyword),
        _ => None,
    }
}

/// Whether a token begins a query: what UNION puts together is as deep as there are queries.
fn is_select(token: &Token) -> bool {
    keyword(token) == Some(Keyword::SELECT)
}

/// Whether a token makes an expression or a set operation deeper. Lists may be long.
fn is_operator(token: &Token) -> bool {
    match token {
        Token::Word(word) => matches!(
            word.keyword,
            Keyword::AND
                | Keyword::OR
                | Keyword::XOR
                | Keyword::NOT
                | Keyword::IS
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::SIMILAR
                | Keyword::BETWEEN
                | Keyword::IN
                | Keyword::AT
                | Keyword::COLLATE
                | Keyword::EXCEPT
                | Keyword::INTERSECT
        ),
        Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::Whitespace(_)
        | Token::Comma
        | Token::Period
        | Token::LParen
        | Token::RParen
        | Token::LBrace
        | Token::RBrace
        | Token::RBracket
        | Token::SemiColon
        | Token::Placeholder(_)
        | Token::EOF => false,
        _ => true,
    }
}

/// Refuses a statement that names tables too often, common table expressions counted as often as they are named: they are
/// planned anew each time.
///
/// # Errors
/// If it names too many.
pub fn check_statement(statement: &Statement) -> Result<(), TooLong> {
    let mut relations = Relations { frames: vec![Frame::default()] };
    let walked = match statement {
        Statement::Statement(statement) => statement.visit(&mut relations),
        Statement::CopyTo(CopyToStatement { source: CopyToSource::Query(query), .. }) => query.visit(&mut relations),
        Statement::Explain(explain) => return check_statement(&explain.statement),
        _ => return Ok(()),
    };
    if walked.is_break() {
        return Err(TooLong(format!(
            "it reads more than {RELATIONS} tables, common table expressions counted as often as they are named"
        )));
    }
    Ok(())
}

/// Counts the tables that a statement reads, innermost queries first.
struct Relations {
    frames: Vec<Frame>,
}

/// A query that is being walked.
#[derive(Default)]
struct Frame {
    /// The queries of its common table expressions, by where they lie, with their names.
    expressions: HashMap<*const Query, String>,
    /// The tables that those before read.
    known: HashMap<String, usize>,
    tables: usize,
}

impl Relations {
    fn add(&mut self, tables: usize) -> ControlFlow<()> {
        if let Some(frame) = self.frames.last_mut() {
            frame.tables += tables;
            if frame.tables > RELATIONS {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }
}

impl Visitor for Relations {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let named = query.with.iter().flat_map(|with| &with.cte_tables);
        let expressions = named.map(|cte| (&raw const *cte.query, cte.alias.name.value.to_lowercase())).collect();
        self.frames.push(Frame { expressions, ..Frame::default() });
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let tables = self.frames.pop().map_or(0, |frame| frame.tables);
        if let Some(frame) = self.frames.last_mut()
            && let Some(name) = frame.expressions.get(&(&raw const *query))
        {
            frame.known.insert(name.clone(), tables.max(1));
            return ControlFlow::Continue(());
        }
        self.add(tables)
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        let name = match relation.0.as_slice() {
            [ObjectNamePart::Identifier(name)] => Some(name.value.to_lowercase()),
            _ => None,
        };
        let known = name.and_then(|name| self.frames.iter().rev().find_map(|frame| frame.known.get(&name).copied()));
        self.add(known.unwrap_or(1))
    }
}

/// Refuses a plan that would be optimized for too long. It stops counting where there is too much.
///
/// # Errors
/// If it has too many joins or nodes.
pub fn check_plan(plan: &LogicalPlan) -> Result<(), TooLong> {
    let (nodes, joins) = count(plan);
    if joins > JOINS {
        return Err(TooLong(format!("it has more than {JOINS} joins")));
    }
    if nodes > NODES {
        return Err(TooLong(format!("its plan has more than {NODES} nodes")));
    }
    Ok(())
}

/// The nodes of a plan and the joins among them, each up to one more than are allowed.
pub fn count(plan: &LogicalPlan) -> (usize, usize) {
    let (mut nodes, mut joins) = (0, 0);
    let counted = plan.apply_with_subqueries(|node| {
        nodes += 1;
        joins += usize::from(matches!(node, LogicalPlan::Join(_)));
        Ok(if nodes > NODES || joins > JOINS { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    // What cannot be walked to its end is as good as endless.
    if counted.is_err() { (NODES + 1, joins) } else { (nodes, joins) }
}

/// What is counted for each node of a plan, with its schema and properties, and for each expression without its value.
const NODE_BYTES: usize = 4 << 10;
const EXPRESSION_BYTES: usize = 512;

/// The bytes that a plan takes, about, with the constants in it.
///
/// # Errors
/// If the plan cannot be walked.
pub fn bytes(plan: &LogicalPlan) -> Result<usize> {
    let mut bytes = 0_usize;
    plan.apply_with_subqueries(|node| {
        bytes = bytes.saturating_add(NODE_BYTES);
        node.apply_expressions(|expression| {
            expression.apply(|part| {
                let value = if let Expr::Literal(value, _) = part { value.size() } else { 0 };
                bytes = bytes.saturating_add(EXPRESSION_BYTES).saturating_add(value);
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(bytes)
}

/// How often a plan names parameters.
///
/// # Errors
/// If the plan cannot be walked.
pub fn placeholders(plan: &LogicalPlan) -> Result<usize> {
    let mut named = 0;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|part| {
                named += usize::from(matches!(part, Expr::Placeholder(_)));
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(named)
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;

    use super::*;

    #[test]
    fn operators_count_and_lists_do_not() {
        assert!(check_text(&format!("SELECT 1{}", " + 1".repeat(2000))).is_ok());
        for operator in ["+ 1", "= 1", "OR true", "AT TIME ZONE 'UTC'", "< 2", "~ 'a'", "XOR true", "IS NULL", "::INT"]
        {
            let refused = check_text(&format!("SELECT 1 {}", format!("{operator} ").repeat(2001)));
            assert!(refused.is_err_and(|status| status.to_string().contains("operators")), "{operator}");
        }
        let values: Vec<_> = (0..20_000).map(|i| format!("({i}, 'a')")).collect();
        assert!(check_text(&format!("INSERT INTO t VALUES {}", values.join(", "))).is_ok());
    }

    /// Neither takes the parser long, nor what is a level below the bound.
    #[test]
    fn brackets_in_brackets_are_bounded() {
        let nested = |before: &str, after: &str, depth: usize| {
            format!("SELECT {}1{}", before.repeat(depth), after.repeat(depth))
        };
        for (before, after) in [
            ("CAST(", " AS INT)"),
            ("TRY_CAST(", " AS INT)"),
            ("SUBSTRING(", " FROM 1)"),
            ("CEIL(", ")"),
            ("EXTRACT(DAY FROM ", ")"),
            ("(", ")"),
            ("[", "]"),
            ("CASE WHEN ", " THEN 1 END"),
            ("INTERVAL ", ""),
            ("INTERVAL(", ")"),
            ("- ", ""),
            ("x::ARRAY<", ">"),
            ("1::STRUCT<a ARRAY<", ">>"),
            ("1 IN (", ")"),
            ("EXISTS (SELECT ", ")"),
            ("{a: ", "}"),
            ("NOT ", ""),
        ] {
            let started = std::time::Instant::now();
            for depth in [NESTED, 49, 60, 3_000] {
                // Whatever it is, it is soon known.
                let _ = parse(&nested(before, after, depth));
            }
            assert!(started.elapsed().as_secs() < 5, "{before}: {:?}", started.elapsed());
        }
        let refused = parse(&nested("CAST(", " AS INT)", 41)).map_err(|error| error.to_string());
        assert!(refused.is_err_and(|message| message.contains("nests 41 brackets, 40 are allowed")));
        assert!(parse(&nested("(", ")", NESTED)).is_ok());
    }

    fn statement(sql: &str) -> Statement {
        let state = SessionContext::new().state();
        state.sql_to_statement(sql, &state.config_options().sql_parser.dialect).expect("parses")
    }

    #[test]
    fn doubling_is_found_without_unfolding_it() {
        let doubled = |nested: bool| {
            let mut sql = "WITH t0 AS (SELECT 1 AS x)".to_string();
            for level in 1..=40 {
                let before = level - 1;
                sql += &match nested {
                    false => format!(", t{level} AS (SELECT a.x FROM t{before} a, T{before} b)"),
                    true => format!(", t{level} AS (WITH i AS (SELECT * FROM t{before}) SELECT a.x FROM i a, i b)"),
                };
            }
            format!("{sql} SELECT * FROM t40")
        };
        for sql in [doubled(false), doubled(true), format!("EXPLAIN {}", doubled(true))] {
            let refused = check_statement(&statement(&sql));
            assert!(refused.is_err_and(|status| status.to_string().contains("tables")), "{sql}");
        }
        let union = vec!["SELECT x FROM t WHERE true"; 500].join(" UNION ALL ");
        assert!(check_statement(&statement(&union)).is_ok());
    }

    #[tokio::test]
    async fn joins_and_nodes_are_counted() {
        let state = SessionContext::new().state();
        let tables: Vec<_> = (0..150).map(|i| format!("(SELECT 1) AS a{i}")).collect();
        let plan = state.create_logical_plan(&format!("SELECT 1 FROM {}", tables.join(", "))).await.expect("plans");
        assert!(check_plan(&plan).is_err_and(|status| status.to_string().contains("joins")));
        let union = vec!["SELECT 1 AS x WHERE true"; 500].join(" UNION ALL ");
        let plan = state.create_logical_plan(&union).await.expect("plans");
        assert!(check_plan(&plan).is_ok());
    }
}
