//! Statements as people type them: results have the column names that were written, and `SHOW FUNCTIONS` lists all functions.

use std::collections::HashSet;

use arrow_quant_bounds::{check_plan, check_statement};
use datafusion::common::{Column, plan_err};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast::{
    Expr as Written, Query, Select, SelectItem, SetExpr, ShowStatementFilter, Statement as Sql,
};

use crate::Result;

/// Plans a statement as `SessionContext::sql` does, with three differences.
///
/// A column of a query that has no name is called what was written: `length(s)` and `1 + 1`, not `length(t.s)` and
/// `Int64(1) + Int64(1)`. `SHOW FUNCTIONS` lists functions that take arguments of any type, too.
/// Statements that would be planned for too long are refused.
///
/// # Errors
/// If the statement is not valid, is too long, or names what is not there.
pub async fn plan_statement(ctx: &SessionContext, statement: Statement) -> Result<LogicalPlan> {
    check_statement(&statement).map_err(DataFusionError::from)?;
    let plan = planned(ctx, statement).await?;
    check_plan(&plan).map_err(DataFusionError::from)?;
    Ok(plan)
}

/// The same, without bounds.
async fn planned(ctx: &SessionContext, statement: Statement) -> Result<LogicalPlan> {
    let Statement::Statement(sql) = &statement else {
        return Ok(ctx.state().statement_to_plan(statement).await?);
    };
    let names = match sql.as_ref() {
        Sql::ShowFunctions { filter } => {
            let query = functions_query(filter.as_ref())?;
            let statement = DFParser::parse_sql(&query)?.pop_front();
            let Some(statement) = statement else { return Ok(plan_err!("SHOW FUNCTIONS has no query")?) };
            return Ok(ctx.state().statement_to_plan(statement).await?);
        }
        Sql::Query(query) => first_select(query).map(written_names).unwrap_or_default(),
        // Other statements give no rows of the user's.
        _ => Vec::new(),
    };
    renamed(ctx.state().statement_to_plan(statement).await?, &names)
}

/// The query of `SHOW FUNCTIONS`. DataFusion's own asks for the types of parameters, which ours decide by themselves.
fn functions_query(filter: Option<&ShowStatementFilter>) -> Result<String> {
    let quoted = |pattern: &str| pattern.replace('\'', "''");
    let condition = match filter {
        None => String::new(),
        Some(ShowStatementFilter::Like(pattern)) => format!("WHERE routine_name LIKE '{}'", quoted(pattern)),
        Some(ShowStatementFilter::ILike(pattern)) => format!("WHERE routine_name ILIKE '{}'", quoted(pattern)),
        Some(ShowStatementFilter::Where(_) | ShowStatementFilter::NoKeyword(_)) => {
            return Ok(plan_err!(
                "SHOW FUNCTIONS takes LIKE or ILIKE and a pattern; for more, query information_schema.routines"
            )?);
        }
    };
    Ok(format!(
        "SELECT DISTINCT routine_name AS function_name, function_type, replace(syntax_example, '`', '') AS syntax_example, \
         description \
         FROM information_schema.routines {condition} ORDER BY function_name, function_type"
    ))
}

/// The `SELECT` that names the columns of a query.
fn first_select(query: &Query) -> Option<&Select> {
    let mut body = query.body.as_ref();
    loop {
        body = match body {
            SetExpr::Select(select) => return Some(select),
            SetExpr::Query(query) => query.body.as_ref(),
            SetExpr::SetOperation { left, .. } => left,
            SetExpr::Values(_)
            | SetExpr::Insert(_)
            | SetExpr::Update(_)
            | SetExpr::Delete(_)
            | SetExpr::Merge(_)
            | SetExpr::Table(_) => return None,
        };
    }
}

/// The text of each expression without a name, by its place; `None` for what has one. Empty if the places are not known,
/// because a `*` is among the expressions.
fn written_names(select: &Select) -> Vec<Option<String>> {
    let name = |item: &SelectItem| match item {
        SelectItem::UnnamedExpr(Written::Identifier(_) | Written::CompoundIdentifier(_)) => Some(None),
        SelectItem::UnnamedExpr(expression) => Some(Some(expression.to_string())),
        SelectItem::ExprWithAlias { .. } => Some(None),
        SelectItem::ExprWithAliases { .. } | SelectItem::QualifiedWildcard(..) | SelectItem::Wildcard(_) => None,
    };
    select.projection.iter().map(name).collect::<Option<_>>().unwrap_or_default()
}

/// The plan with these names for its columns. DataFusion's own name stays if it differs in case and spaces alone, or if another
/// column has the new one.
fn renamed(plan: LogicalPlan, names: &[Option<String>]) -> Result<LogicalPlan> {
    let schema = plan.schema();
    if names.len() != schema.fields().len() {
        return Ok(plan);
    }
    let mut taken: HashSet<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    let mut changed = false;
    let columns: Vec<Expr> = schema
        .iter()
        .zip(names)
        .map(|((qualifier, field), written)| {
            let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
            match written {
                Some(name) if !is_alike(name, field.name()) && taken.insert(name.clone()) => {
                    changed = true;
                    column.alias(name)
                }
                Some(_) | None => column,
            }
        })
        .collect();
    Ok(if changed { LogicalPlanBuilder::from(plan).project(columns)?.build()? } else { plan })
}

/// Whether two names differ in case and spaces alone.
fn is_alike(a: &str, b: &str) -> bool {
    let letters =
        |name: &str| name.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect::<String>();
    letters(a) == letters(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn columns(sql: &str) -> Vec<String> {
        let ctx = crate::session(1).unwrap();
        ctx.sql("CREATE TABLE t AS VALUES (1, 'a'), (2, 'b')").await.unwrap().collect().await.unwrap();
        let statement = DFParser::parse_sql(sql).unwrap().pop_front().unwrap();
        let plan = plan_statement(&ctx, statement).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let names = plan.schema().fields().iter().map(|field| field.name().clone()).collect();
        let frame = ctx.execute_logical_plan(plan).await.unwrap();
        frame.collect().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        names
    }

    #[tokio::test]
    async fn columns_are_called_what_was_written() {
        for (sql, expected) in [
            ("SELECT length(string_agg(column2, ',')) FROM t", &["length(string_agg(column2, ','))"][..]),
            ("SELECT 1+1, 'x', -1, CAST(1 AS BIGINT)", &["1 + 1", "'x'", "-1", "CAST(1 AS BIGINT)"]),
            ("SELECT COUNT(*), sum(column1) FROM t", &["count(*)", "sum(column1)"]),
            ("SELECT column1, column2 AS b, upper(column2) FROM t", &["column1", "b", "upper(column2)"]),
            ("SELECT upper(column2) FROM t GROUP BY upper(column2) ORDER BY upper(column2)", &["upper(column2)"]),
            ("SELECT DISTINCT column1 + 1 FROM t LIMIT 1", &["column1 + 1"]),
            ("SELECT column1 * 2 FROM t UNION ALL SELECT 5 ORDER BY 1", &["column1 * 2"]),
            ("WITH s AS (SELECT column1 + 1 AS n FROM t) SELECT n * 2 FROM s", &["n * 2"]),
            ("SELECT sum(column1) OVER (PARTITION BY column2) FROM t", &["sum(column1) OVER (PARTITION BY column2)"]),
            ("SELECT t.*, column1 + 1 FROM t", &["column1", "column2", "t.column1 + Int64(1)"]),
            ("SELECT column1 + 1 AS \"column1 + 2\", column1 + 2 FROM t", &["column1 + 2", "t.column1 + Int64(2)"]),
        ] {
            assert_eq!(columns(sql).await, expected, "{sql}");
        }
    }

    #[tokio::test]
    async fn show_functions_has_ours() {
        let ctx = crate::session(1).unwrap();
        for (filter, function) in [("", "quantize"), ("LIKE 'sqnr_agg'", "sqnr_agg"), ("ILIKE 'WEIGHTS'", "weights")] {
            let statement = DFParser::parse_sql(&format!("SHOW FUNCTIONS {filter}")).unwrap().pop_front().unwrap();
            let plan = plan_statement(&ctx, statement).await.unwrap();
            let rows = ctx.execute_logical_plan(plan).await.unwrap().collect().await.unwrap();
            let text = arrow::util::pretty::pretty_format_batches(&rows).unwrap().to_string();
            assert!(text.contains(function), "{filter}: {text}");
        }
        let statement = DFParser::parse_sql("SHOW FUNCTIONS WHERE true").unwrap().pop_front().unwrap();
        assert!(plan_statement(&ctx, statement).await.unwrap_err().to_string().contains("information_schema.routines"));
    }
}
